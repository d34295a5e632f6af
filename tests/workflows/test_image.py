from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz import __version__
from ourvidz.errors import (
    Cancelled,
    I2IPipelineError,
    InvalidParameters,
    PolicyViolation,
    ReferenceForbidden,
    ReferenceFrameError,
    StorageError,
)
from ourvidz.jobs.job import ImageJob
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import read_source_type
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import Fetcher
from ourvidz.pipelines.base import GeneratedImages, ImagePipeline, OnStep, PreviewRenderer
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.references.resolve import Limits, References
from ourvidz.safety.gate import Gate, Terms
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.wiring.models import WarmModels
from ourvidz.workflows import assets
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
    previews: list[PreviewRenderer] = field(default_factory=list)
    cancel_at: int | None = None

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done == self.cancel_at:
            raise Cancelled("enough")

    def preview(self, take: Callable[[], PreviewRenderer]) -> None:
        self.previews.append(take())

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        self.puts.append((key, content_type))
        store.put(key, data, content_type=content_type)


@pytest.fixture(scope="module")
def warm(untrained_sdxl: Path) -> WarmModels:
    """The tiny profile's models."""
    models = WarmModels(SDXLPipeline(Checkpoint(untrained_sdxl, "tiny"), cap=128))
    models.warm()
    return models


@pytest.fixture
def use(warm: WarmModels, tmp_path: Path) -> Services:
    """Real models, a real directory, a gate with stand-in terms."""
    store = LocalStore(tmp_path / "assets")
    limits = Limits(max_bytes=1 << 20, max_pixels=1 << 20)
    references = References(Fetcher(EgressPolicy(), timeout_s=1.0, max_bytes=1 << 20).get, store.get, limits)
    return Services(models=warm, store=store, gate=GATE, references=references)


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
    assert [look().size for look in run.previews] == [(64, 128)]


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
        "final_prompt_type": "string",
        "compel_success": False,
        "enhancement_strategy": "none",
        "worker_version": __version__,
    }


def test_every_stored_file_says_that_a_machine_made_it(use: Services) -> None:
    """Marking is not an option of the caller."""
    run = RecordingRun()
    generate_images(job(), run, use)
    marks = {read_source_type(use.store.get(key)) for key, _ in run.puts}
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
    assert sorted(first.puts) == sorted(second.puts)


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


HILLS = "reference_images/user-1/hills.png"


@pytest.fixture
def hills(use: Services) -> str:
    """The storage path of a reference."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    use.store.put(HILLS, file.getvalue(), content_type="image/png")
    return HILLS


@contextmanager
def broken_encoder(use: Services) -> Iterator[None]:
    """A reference's way into the model fails, as a driver or a library may make it."""

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    encoder = use.models.images()._pipe.vae.encoder  # type: ignore[attr-defined]
    hook = encoder.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_a_reference_shapes_the_picture(use: Services, hills: str) -> None:
    """The main road: the prompt alone would make another picture, and nothing says fallback."""
    run = RecordingRun()
    outcome = generate_images(job(reference=hills, steps=4, denoise_strength=0.5), run, use)
    plain = generate_images(job(id="job-2", steps=4), RecordingRun(), use)
    assert use.store.get(outcome.assets[0].key) != use.store.get(plain.assets[0].key)
    assert outcome.metadata["reference_backend"] == "img2img"
    assert "reference_fallback" not in outcome.metadata
    assert outcome.assets[0].metadata["pipeline"] == "img2img"
    assert run.steps == [(0, 2), (1, 2), (2, 2)]


def test_a_picture_made_from_a_reference_says_so(use: Services, hills: str) -> None:
    """What began with somebody's picture is marked as composed, in the picture and its thumbnail."""
    run = RecordingRun()
    generate_images(job(reference=hills), run, use)
    marks = {read_source_type(use.store.get(key)) for key, _ in run.puts}
    assert marks == {"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"}


def test_an_exact_copy_without_strength_is_the_reference(use: Services, hills: str) -> None:
    """Nothing is painted, and everything is delivered and told as usual."""
    copied = job(
        reference=hills, prompt="", exact_copy_mode=True, denoise_strength=0.0, steps=6, guidance_scale=1.0
    )
    outcome = generate_images(copied, RecordingRun(), use)
    expected = Image.linear_gradient("L").convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    assert opened(use.store, outcome.assets[0].key).tobytes() == expected.tobytes()
    assert outcome.assets[0].metadata["effective_steps"] == 0


def test_an_unusable_reference_falls_back_to_the_prompt_and_says_so(use: Services) -> None:
    """The caller gets a picture and learns that the reference did not shape it."""
    missing = job(reference="reference_images/user-1/gone.png", negative_prompt="fog", denoise_strength=0.4)
    outcome = generate_images(missing, RecordingRun(), use)
    plain = generate_images(job(id="job-2", negative_prompt="fog"), RecordingRun(), use)
    assert use.store.get(outcome.assets[0].key) == use.store.get(plain.assets[0].key)
    assert outcome.metadata["reference_fallback"] is True
    assert outcome.metadata["reference_error"] == "REFERENCE_FRAME_ERROR"
    assert outcome.metadata["reference_error_reason"]
    assert outcome.metadata["reference_backend"] is None
    described = outcome.assets[0].metadata
    assert (described["denoise_strength"], described["pipeline"]) == (0.4, "text_to_image")
    assert (described["resize_policy"], described["negative_prompt_used"]) == (None, True)
    assert (described["steps"], described["effective_steps"]) == (2, 2)
    assert not {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"} & set(
        plain.assets[0].metadata
    )


def test_a_fallback_tells_of_the_negative_prompt_as_it_was_used(use: Services) -> None:
    """Without guidance no model reads it."""
    missing = job(reference="reference_images/user-1/gone.png", negative_prompt="fog", guidance_scale=1.0)
    outcome = generate_images(missing, RecordingRun(), use)
    assert outcome.assets[0].metadata["negative_prompt_used"] is False


def test_a_failing_pass_falls_back_to_the_prompt_and_says_so(use: Services, hills: str) -> None:
    """A model that cannot begin with a picture can still begin without one."""
    with broken_encoder(use):
        outcome = generate_images(job(reference=hills), RecordingRun(), use)
    assert outcome.status == "completed"
    assert outcome.metadata["reference_fallback"] is True
    assert outcome.metadata["reference_error"] == "I2I_PIPELINE_ERROR"
    assert outcome.assets[0].metadata["pipeline"] == "text_to_image"


def test_without_a_prompt_there_is_nothing_to_fall_back_to(use: Services, hills: str) -> None:
    """A picture of nothing in particular would be worse than an error; the code says what went wrong."""
    copied = {"prompt": "", "exact_copy_mode": True, "denoise_strength": 0.05, "steps": 10}
    run = RecordingRun()
    with pytest.raises(ReferenceFrameError):
        generate_images(job(reference="reference_images/user-1/gone.png", **copied), run, use)
    with broken_encoder(use), pytest.raises(I2IPipelineError):
        generate_images(job(reference=hills, **copied), run, use)
    assert (run.steps, run.puts) == ([], [])


def test_somebody_else_s_reference_fails_the_job(use: Services) -> None:
    """Falling back would hide an attempt to read what is not one's own."""
    run = RecordingRun()
    with pytest.raises(ReferenceForbidden):
        generate_images(job(reference="reference_images/user-2/hills.png"), run, use)
    assert (run.steps, run.puts) == ([], [])


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

    def generate(self, job: ImageJob, *, on_step: OnStep, **_: Any) -> GeneratedImages:
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


class Slow(LocalStore):
    """A storage whose first put waits until another picture has been encoded."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.encoded = threading.Event()

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        assert self.encoded.wait(30), "nothing was encoded while the first picture was being stored"
        super().put(key, data, content_type=content_type)


def test_pictures_are_encoded_while_others_are_stored(
    use: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage far away takes its time, and the pipeline waits for the end of all of it."""
    store = Slow(tmp_path / "slow")
    encoded: list[int] = []

    def counting(image: Image.Image, **options: Any) -> bytes:
        file = encode_png(image, **options)
        encoded.append(1)
        if len(encoded) == 3:
            store.encoded.set()
        return file

    monkeypatch.setattr(assets, "encode_png", counting)
    outcome = generate_images(job(num_images=3), RecordingRun(), replace(use, store=store))
    assert [asset.metadata["seed"] for asset in outcome.assets] == [100, 101, 102]


@contextmanager
def decoding(use: Services, before: Callable[[int], None]) -> Iterator[None]:
    """Calls `before` with the number of every decoding, from 1."""
    calls = itertools.count(1)
    decoder = use.models.images()._pipe.vae.decoder  # type: ignore[attr-defined]
    hook = decoder.register_forward_pre_hook(lambda *_: before(next(calls)))
    try:
        yield
    finally:
        hook.remove()


def test_a_picture_is_stored_while_the_next_ones_are_decoded(use: Services, tmp_path: Path) -> None:
    """The pipeline and the storage work at the same time."""
    store = LocalStore(tmp_path / "early")

    class Early(RecordingRun):
        stored = threading.Event()

        def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
            super().put(store, key, data, content_type)
            if key.endswith("/0.png"):
                self.stored.set()

    def wait_for_the_first(call: int) -> None:
        assert call == 1 or Early.stored.wait(30), "the first picture is not stored before the last is there"

    with decoding(use, wait_for_the_first):
        outcome = generate_images(job(num_images=3), Early(), replace(use, store=store))
    assert [asset.metadata["seed"] for asset in outcome.assets] == [100, 101, 102]


def test_a_fallback_replaces_what_was_stored_before_it(use: Services, hills: str, tmp_path: Path) -> None:
    """A pass that fails at its last picture has stored the first ones: none of them may stay, nor their
    mark."""

    def fail(call: int) -> None:
        if call == 2:
            raise RuntimeError("shapes do not match")

    expected = LocalStore(tmp_path / "plain")
    generate_images(job(num_images=3), RecordingRun(), replace(use, store=expected))
    run = RecordingRun()
    with decoding(use, fail):
        outcome = generate_images(job(num_images=3, reference=hills, denoise_strength=0.9), run, use)
    assert outcome.metadata["reference_error"] == "I2I_PIPELINE_ERROR"
    assert len(outcome.assets) == 3
    for asset in outcome.assets:
        assert use.store.get(asset.key) == expected.get(asset.key)
        assert use.store.get(asset.thumbnail_key) == expected.get(asset.thumbnail_key)
