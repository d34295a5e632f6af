from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz import __version__
from ourvidz.errors import Cancelled, I2IPipelineError, InvalidParameters, PolicyViolation, StorageError
from ourvidz.jobs.job import ImageJob
from ourvidz.media.provenance import source_type_of
from ourvidz.pipelines.base import ImagePipeline, OnStep, Pictures
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl import SDXLPipeline
from ourvidz.pipelines.tiny_sdxl import tiny_sdxl
from ourvidz.safety.gate import Gate, Terms
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.wiring.models import WarmModels
from ourvidz.workflows.image import generate_images
from ourvidz.workflows.services import Services

GATE = Gate(Terms(minor=frozenset({"quokka"}), sexual=frozenset({"marmalade"})))
"""Neutral stand-ins; only both together are refused."""


@dataclass
class RecordingRun:
    """A run that writes down what it hears and stores for real."""

    attempt: int = 1
    steps: list[tuple[int, int]] = field(default_factory=list)
    puts: list[tuple[str, str]] = field(default_factory=list)
    cancel_at: int | None = None

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done == self.cancel_at:
            raise Cancelled("enough")

    def preview(self, webp: bytes) -> None:
        raise AssertionError("no previews in this version")

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        self.puts.append((key, content_type))
        store.put(key, data, content_type=content_type)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> WarmModels:
    """The tiny profile's models."""
    checkpoint = Checkpoint(tiny_sdxl(tmp_path_factory.mktemp("checkpoints")), "tiny")
    models = WarmModels(SDXLPipeline(checkpoint, cap=128))
    models.warm()
    return models


@pytest.fixture
def use(warm: WarmModels, tmp_path: Path) -> Services:
    """Real models, a real directory, a gate with stand-in terms."""
    return Services(models=warm, store=LocalStore(tmp_path / "assets"), gate=GATE)


def job(**changed: Any) -> ImageJob:
    fields: dict[str, Any] = {
        "id": "job-1",
        "type": "sdxl_image_high",
        "user_id": "user-1",
        "expected_time": 42,
        "prompt": "a lighthouse above the sea",
        "steps": 2,
        "guidance_scale": 7.5,
        "width": 64,
        "height": 64,
        "seed": 100,
    }
    return ImageJob(**(fields | changed))


def opened(store: Store, key: str) -> Image.Image:
    picture = Image.open(io.BytesIO(store.get(key)))
    picture.load()
    return picture


@pytest.mark.parametrize("count", [1, 3])
def test_every_picture_is_stored_with_its_thumbnail(use: Services, count: int) -> None:
    """A completed callback may only name files that can be read."""
    run = RecordingRun()
    outcome = generate_images(job(num_images=count, width=320, height=640), run, use)
    assert outcome.status == "completed"
    assert [(asset.key, asset.thumbnail_key) for asset in outcome.assets] == [
        (f"workspace-temp/user-1/job-1/{k}.png", f"workspace-temp/user-1/job-1/{k}.thumb.webp")
        for k in range(count)
    ]
    for asset in outcome.assets:
        picture, small = opened(use.store, asset.key), opened(use.store, asset.thumbnail_key)
        assert (picture.format, picture.size) == ("PNG", (64, 128))
        assert (small.format, small.size) == ("WEBP", (64, 128))
    assert {kind for key, kind in run.puts if key.endswith(".png")} == {"image/png"}
    assert {kind for key, kind in run.puts if key.endswith(".webp")} == {"image/webp"}
    assert len(run.puts) == 2 * count
    assert run.steps == [(0, 2), (1, 2), (2, 2)]


def test_each_asset_describes_its_own_picture(use: Services) -> None:
    """Callers show and sort pictures by these fields."""
    outcome = generate_images(job(num_images=3), RecordingRun(), use)
    for k, asset in enumerate(outcome.assets):
        assert asset.type == "image"
        assert asset.metadata == {
            "width": 64,
            "height": 64,
            "format": "png",
            "batch_size": 3,
            "steps": 2,
            "effective_steps": 2,
            "guidance_scale": 7.5,
            "seed": 100 + k,
            "file_size_bytes": len(use.store.get(asset.key)),
            "asset_index": k,
        }


def test_the_outcome_says_what_the_worker_found_out(use: Services) -> None:
    """The rest of the callback's metadata comes from the job itself."""
    metadata = generate_images(job(width=1024, height=576), RecordingRun(), use).metadata
    assert metadata.pop("generation_time") > 0
    memory = use.models.memory()
    assert {name: metadata.pop(name) for name in memory}.keys() == memory.keys()
    assert metadata == {
        "batch_size": 1,
        "size_capped": True,
        "final_prompt_type": "text",
        "compel_success": False,
        "enhancement_strategy": "none",
        "worker_version": __version__,
    }


def test_every_stored_file_says_that_a_machine_made_it(use: Services) -> None:
    """Marking is not an option of the caller."""
    run = RecordingRun()
    generate_images(job(), run, use)
    marks = {source_type_of(use.store.get(key)) for key, _ in run.puts}
    assert marks == {"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"}


def test_no_stored_file_holds_the_prompt_or_the_user(use: Services) -> None:
    """Files are handed on; who asked for what is nobody else's business."""
    run = RecordingRun()
    generate_images(job(), run, use)
    for key, _ in run.puts:
        data = use.store.get(key)
        assert b"lighthouse" not in data
        assert b"user-1" not in data


def test_a_second_attempt_writes_the_same_files(use: Services) -> None:
    """Whichever attempt wins, its callback names files that are there and right."""
    first, second = RecordingRun(attempt=1), RecordingRun(attempt=2)
    generate_images(job(num_images=3), first, use)
    generate_images(job(num_images=3), second, use)
    assert first.puts == second.puts


def test_what_the_gate_refuses_never_reaches_the_model(use: Services) -> None:
    """The door may be older than the worker: the worker looks again."""
    run = RecordingRun()
    with pytest.raises(PolicyViolation):
        generate_images(job(prompt="a quokka by the sea", negative_prompt="marmalade"), run, use)
    assert (run.steps, run.puts) == ([], [])


def test_a_cancelled_job_stores_nothing(use: Services) -> None:
    """Half a batch would look like a result."""
    run = RecordingRun(cancel_at=1)
    with pytest.raises(Cancelled):
        generate_images(job(), run, use)
    assert run.puts == []


def test_a_storage_failure_ends_the_attempt(use: Services, tmp_path: Path) -> None:
    """A job whose picture was not kept is not completed."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        generate_images(job(), RecordingRun(), replace(use, store=LocalStore(tmp_path / "file")))


def test_a_job_without_a_user_has_nowhere_to_store(use: Services) -> None:
    """Keys begin with the user; making one up would mix people's files."""
    with pytest.raises(InvalidParameters) as refused:
        generate_images(job(user_id=None), RecordingRun(), use)
    assert refused.value.field == "user_id"


def test_a_reference_falls_back_to_its_prompt_and_says_so(use: Services) -> None:
    """The caller gets a picture and learns that the reference did not shape it."""
    with_reference = job(
        reference="https://example.org/hills.png", negative_prompt="fog", denoise_strength=0.4
    )
    outcome = generate_images(with_reference, RecordingRun(), use)
    plain = generate_images(job(id="job-2", negative_prompt="fog"), RecordingRun(), use)
    assert use.store.get(outcome.assets[0].key) == use.store.get(plain.assets[0].key)
    assert outcome.metadata["reference_fallback"] is True
    assert outcome.metadata["reference_error"] == "I2I_PIPELINE_ERROR"
    assert outcome.metadata["reference_error_reason"]
    assert outcome.metadata["reference_backend"] is None
    described = outcome.assets[0].metadata
    assert (described["denoise_strength"], described["pipeline"]) == (0.4, "text_to_image")
    assert (described["resize_policy"], described["negative_prompt_used"]) == (None, True)
    assert (described["steps"], described["effective_steps"]) == (2, 2)
    assert not {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"} & set(
        plain.assets[0].metadata
    )


def test_a_reference_without_a_prompt_has_nothing_to_fall_back_to(use: Services) -> None:
    """A picture of nothing in particular would be worse than an error."""
    run = RecordingRun()
    with pytest.raises(I2IPipelineError):
        generate_images(job(reference="u/p.png", prompt="", exact_copy_mode=True), run, use)
    assert run.steps == []


class Unshrinkable(Image.Image):
    """A picture that can be written as it is but not converted."""

    def convert(self, *_: Any, **__: Any) -> Image.Image:
        raise OSError("broken pixels")


@dataclass
class LastPictureBroken:
    """The real models, except that the last picture of a batch has no small version."""

    models: WarmModels

    def images(self) -> ImagePipeline:
        return self

    def memory(self) -> dict[str, Any]:
        return self.models.memory()

    def generate(self, job: ImageJob, *, on_step: OnStep) -> Pictures:
        made = self.models.images().generate(job, on_step=on_step)
        made.images[-1].__class__ = Unshrinkable
        return made


def test_a_missing_thumbnail_is_noted_and_the_job_completes(use: Services, warm: WarmModels) -> None:
    """The picture is what was asked for; its thumbnail is a courtesy."""
    run = RecordingRun()
    outcome = generate_images(job(num_images=3), run, replace(use, models=LastPictureBroken(warm)))
    assert outcome.status == "completed"
    assert [asset.thumbnail_key is not None for asset in outcome.assets] == [True, True, False]
    assert [asset.metadata.get("thumbnail_error") for asset in outcome.assets] == [
        None,
        None,
        "THUMBNAIL_GENERATION_ERROR",
    ]
    assert opened(use.store, outcome.assets[2].key).size == (64, 64)
    assert len(run.puts) == 5


class NoSmallOnes(LocalStore):
    """A storage that has room for pictures and none for thumbnails."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        if key.endswith(".webp"):
            raise StorageError("the disk is full")
        super().put(key, data, content_type=content_type)


def test_a_thumbnail_that_cannot_be_stored_costs_no_picture(use: Services, tmp_path: Path) -> None:
    """The caller has paid for the picture."""
    outcome = generate_images(job(), RecordingRun(), replace(use, store=NoSmallOnes(tmp_path / "small")))
    assert outcome.status == "completed"
    assert outcome.assets[0].key == "workspace-temp/user-1/job-1/0.png"
    assert outcome.assets[0].thumbnail_key is None
    assert outcome.assets[0].metadata["thumbnail_error"] == "THUMBNAIL_GENERATION_ERROR"
