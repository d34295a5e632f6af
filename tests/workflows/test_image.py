"""The workflow of SDXL jobs on a real pipeline."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from ourvidz.pipelines.base import GeneratedImages, ImagePipeline, OnStep
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.wiring.models import WarmModels
from ourvidz.workflows import assets
from ourvidz.workflows.image import generate_images
from ourvidz.workflows.services import Services
from tests import factories
from tests.factories import RecordingRun


@pytest.fixture(scope="module")
def models(untrained_sdxl: Path) -> WarmModels:
    """The tiny profile's models."""
    models = WarmModels(SDXLPipeline(Checkpoint(untrained_sdxl, "tiny"), cap=128))
    models.warm()
    return models


@pytest.fixture
def services(models: WarmModels, tmp_path: Path) -> Services:
    """Real models, a real directory, a gate with stand-in terms."""
    return factories.services(models, tmp_path)


def job(**changes: Any) -> ImageJob:
    """An SDXL job whose prompt does not occur in the files."""
    fields = {"type": "sdxl_image_high", "prompt": "a lighthouse above the sea", "guidance_scale": 7.5}
    return factories.image_job(**{"seed": 100, **fields, **changes})


def read_image(store: Store, key: str) -> Image.Image:
    image = Image.open(io.BytesIO(store.get(key)))
    image.load()
    return image


@pytest.mark.parametrize("count", [1, 3])
def test_every_image_is_stored_with_its_thumbnail(services: Services, count: int) -> None:
    """A completed callback may only name files that can be read."""
    run = RecordingRun()
    outcome = generate_images(job(num_images=count, width=320, height=640), run, services)
    assert outcome.status == "completed"
    assert [(asset.key, asset.thumbnail_key) for asset in outcome.assets] == [
        (f"workspace-temp/user-1/job-1/{k}.png", f"workspace-temp/user-1/job-1/{k}.thumb.webp")
        for k in range(count)
    ]
    for asset in outcome.assets:
        image, small = (
            read_image(services.store, asset.key),
            read_image(services.store, asset.thumbnail_key),
        )
        assert (image.format, image.size) == ("PNG", (64, 128))
        assert (small.format, small.size) == ("WEBP", (64, 128))
    assert {kind for key, kind in run.puts if key.endswith(".png")} == {"image/png"}
    assert {kind for key, kind in run.puts if key.endswith(".webp")} == {"image/webp"}
    assert len(run.puts) == 2 * count
    assert run.steps == [(0, 2), (1, 2), (2, 2)]
    assert [render().size for render in run.previews] == [(64, 128)]


def test_each_asset_describes_its_own_image(services: Services) -> None:
    """Callers show and sort images by these fields."""
    outcome = generate_images(job(num_images=3), RecordingRun(), services)
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
            "file_size_bytes": len(services.store.get(asset.key)),
            "asset_index": k,
        }


def test_the_outcome_reports_what_the_worker_measured(services: Services) -> None:
    """The rest of the callback's metadata comes from the job itself."""
    metadata = generate_images(job(width=1024, height=576), RecordingRun(), services).metadata
    assert metadata.pop("generation_time") > 0
    memory = services.models.memory()
    assert {name: metadata.pop(name) for name in memory}.keys() == memory.keys()
    assert {"embedding_cache", "gpu_seconds", "receipt"} <= metadata.keys()
    assert {
        name: metadata[name] for name in metadata.keys() - {"embedding_cache", "gpu_seconds", "receipt"}
    } == {
        "batch_size": 1,
        "size_capped": True,
        "final_prompt_type": "string",
        "compel_success": False,
        "enhancement_strategy": "none",
        "worker_version": __version__,
    }


def test_every_stored_file_is_marked_as_machine_made(services: Services) -> None:
    """The mark is not an option of the caller."""
    run = RecordingRun()
    generate_images(job(), run, services)
    marks = {read_source_type(services.store.get(key)) for key, _ in run.puts}
    assert marks == {"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"}


def test_no_stored_file_holds_the_prompt_or_the_user(services: Services) -> None:
    """Files are passed on; prompts and user ids are private."""
    run = RecordingRun()
    generate_images(job(), run, services)
    for key, _ in run.puts:
        data = services.store.get(key)
        assert b"lighthouse" not in data
        assert b"user-1" not in data


def test_a_second_attempt_writes_the_same_files(services: Services) -> None:
    """Whichever attempt commits, its callback names the right files."""
    first, second = RecordingRun(), RecordingRun()
    generate_images(job(num_images=3), first, services)
    generate_images(job(num_images=3), second, services)
    assert sorted(first.puts) == sorted(second.puts)


def test_what_the_gate_refuses_never_reaches_the_model(services: Services) -> None:
    """The shim may run an older release than the worker, so the worker checks again."""
    run = RecordingRun()
    with pytest.raises(PolicyViolation):
        generate_images(job(prompt="a quokka by the sea", negative_prompt="marmalade"), run, services)
    assert (run.steps, run.puts) == ([], [])


def test_a_cancelled_job_stores_nothing(services: Services) -> None:
    """A part of a batch would look like a result."""
    run = RecordingRun(stop_at=1)
    with pytest.raises(Cancelled):
        generate_images(job(), run, services)
    assert run.puts == []


def test_a_storage_failure_ends_the_attempt(services: Services, tmp_path: Path) -> None:
    """A job whose image was not stored is not completed."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        generate_images(job(), RecordingRun(), replace(services, store=LocalStore(tmp_path / "file")))


def test_a_job_without_a_user_cannot_store(services: Services) -> None:
    """Keys begin with the user id; a made-up one would mix users' files."""
    with pytest.raises(InvalidParameters) as refused:
        generate_images(job(user_id=None), RecordingRun(), services)
    assert refused.value.field == "user_id"


GRADIENT = "reference_images/user-1/gradient.png"


@pytest.fixture
def gradient(services: Services) -> str:
    """The storage path of a reference."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    services.store.put(GRADIENT, file.getvalue(), content_type="image/png")
    return GRADIENT


@contextmanager
def broken_vae_encoder(services: Services) -> Iterator[None]:
    """Make the VAE fail when it encodes a reference, as a driver or a library may."""

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    encoder = services.models.images()._pipe.vae.encoder  # type: ignore[attr-defined]
    hook = encoder.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_a_reference_steers_the_image(services: Services, gradient: str) -> None:
    """The prompt alone makes another image, and the metadata reports no fallback."""
    run = RecordingRun()
    outcome = generate_images(job(reference=gradient, steps=4, denoise_strength=0.5), run, services)
    plain = generate_images(job(id="job-2", steps=4), RecordingRun(), services)
    assert services.store.get(outcome.assets[0].key) != services.store.get(plain.assets[0].key)
    assert outcome.metadata["reference_backend"] == "img2img"
    assert not {"reference_fallback", "reference_tries"} & set(outcome.metadata)
    assert outcome.assets[0].metadata["pipeline"] == "img2img"
    assert run.steps == [(0, 2), (1, 2), (2, 2)]


def test_an_image_made_from_a_reference_is_marked_as_composed(services: Services, gradient: str) -> None:
    """In the image and in its thumbnail."""
    run = RecordingRun()
    generate_images(job(reference=gradient), run, services)
    marks = {read_source_type(services.store.get(key)) for key, _ in run.puts}
    assert marks == {"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"}


def test_an_exact_copy_without_strength_is_the_reference(services: Services, gradient: str) -> None:
    """No step runs; the result is stored and reported as usual."""
    exact_copy = job(
        reference=gradient, prompt="", exact_copy_mode=True, denoise_strength=0.0, steps=6, guidance_scale=1.0
    )
    outcome = generate_images(exact_copy, RecordingRun(), services)
    expected = Image.linear_gradient("L").convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    assert read_image(services.store, outcome.assets[0].key).tobytes() == expected.tobytes()
    assert outcome.assets[0].metadata["effective_steps"] == 0


def test_an_unusable_reference_falls_back_to_the_prompt(services: Services) -> None:
    """The caller gets an image, and the metadata says that the reference was not used."""
    missing = job(reference="reference_images/user-1/gone.png", negative_prompt="fog", denoise_strength=0.4)
    outcome = generate_images(missing, RecordingRun(), services)
    plain = generate_images(job(id="job-2", negative_prompt="fog"), RecordingRun(), services)
    assert services.store.get(outcome.assets[0].key) == services.store.get(plain.assets[0].key)
    assert outcome.metadata["reference_fallback"] is True
    assert outcome.metadata["reference_error"] == "REFERENCE_FRAME_ERROR"
    assert outcome.metadata["reference_error_reason"]
    assert outcome.metadata["reference_backend"] is None
    metadata = outcome.assets[0].metadata
    assert (metadata["denoise_strength"], metadata["pipeline"]) == (0.4, "text_to_image")
    assert (metadata["resize_policy"], metadata["negative_prompt_used"]) == (None, True)
    assert (metadata["steps"], metadata["effective_steps"]) == (2, 2)
    assert not {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"} & set(
        plain.assets[0].metadata
    )


def test_a_fallback_reports_whether_the_negative_prompt_was_used(services: Services) -> None:
    """Without guidance the model does not get it."""
    missing = job(reference="reference_images/user-1/gone.png", negative_prompt="fog", guidance_scale=1.0)
    outcome = generate_images(missing, RecordingRun(), services)
    assert outcome.assets[0].metadata["negative_prompt_used"] is False


def test_a_failing_img2img_pass_falls_back_to_the_prompt(services: Services, gradient: str) -> None:
    """Text-to-image may work where encoding the reference does not."""
    with broken_vae_encoder(services):
        outcome = generate_images(job(reference=gradient), RecordingRun(), services)
    assert outcome.status == "completed"
    assert outcome.metadata["reference_fallback"] is True
    assert outcome.metadata["reference_error"] == "I2I_PIPELINE_ERROR"
    assert outcome.assets[0].metadata["pipeline"] == "text_to_image"


def test_the_outcome_tells_the_tries_of_a_download(services: Services) -> None:
    """A storage server that answers 503 now and then is seen in the metadata of the jobs that it slows."""
    downloaded = factories.downloaded_reference(Image.linear_gradient("L"), tries=2)
    outcome = generate_images(
        job(reference="https://example.com/a.png"), RecordingRun(), replace(services, references=downloaded)
    )
    assert outcome.metadata["reference_tries"] == 2


def test_without_a_prompt_there_is_nothing_to_fall_back_to(services: Services, gradient: str) -> None:
    """An image of nothing in particular would be worse than an error with a code."""
    copied = {"prompt": "", "exact_copy_mode": True, "denoise_strength": 0.05, "steps": 10}
    run = RecordingRun()
    with pytest.raises(ReferenceFrameError):
        generate_images(job(reference="reference_images/user-1/gone.png", **copied), run, services)
    with broken_vae_encoder(services), pytest.raises(I2IPipelineError):
        generate_images(job(reference=gradient, **copied), run, services)
    assert (run.steps, run.puts) == ([], [])


def test_another_users_reference_fails_the_job(services: Services) -> None:
    """A fallback would hide an attempt to read another user's files."""
    run = RecordingRun()
    with pytest.raises(ReferenceForbidden):
        generate_images(job(reference="reference_images/user-2/gradient.png"), run, services)
    assert (run.steps, run.puts) == ([], [])


class Unshrinkable(Image.Image):
    """An image that can be encoded as it is but not converted."""

    def convert(self, *_: Any, **__: Any) -> Image.Image:
        raise OSError("broken pixels")


@dataclass
class LastImageBroken:
    """The real models, except that the last image of a batch cannot be shrunk."""

    models: WarmModels

    def images(self) -> ImagePipeline:
        return self

    def memory(self) -> dict[str, Any]:
        return self.models.memory()

    def generate(self, job: ImageJob, *, on_step: OnStep, **_: Any) -> GeneratedImages:
        result = self.models.images().generate(job, on_step=on_step)
        result.images[-1].__class__ = Unshrinkable
        return result


def test_a_missing_thumbnail_is_noted_and_the_job_completes(services: Services, models: WarmModels) -> None:
    """The image is what was requested; a thumbnail is an extra."""
    run = RecordingRun()
    outcome = generate_images(job(num_images=3), run, replace(services, models=LastImageBroken(models)))
    assert outcome.status == "completed"
    assert [asset.thumbnail_key is not None for asset in outcome.assets] == [True, True, False]
    assert [asset.metadata.get("thumbnail_error") for asset in outcome.assets] == [
        None,
        None,
        "THUMBNAIL_GENERATION_ERROR",
    ]
    assert read_image(services.store, outcome.assets[2].key).size == (64, 64)
    assert len(run.puts) == 5


class NoThumbnails(LocalStore):
    """A store that refuses thumbnails."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        if key.endswith(".webp"):
            raise StorageError("the disk is full")
        super().put(key, data, content_type=content_type)


def test_a_thumbnail_that_cannot_be_stored_fails_no_job(services: Services, tmp_path: Path) -> None:
    """The image is already there."""
    outcome = generate_images(job(), RecordingRun(), replace(services, store=NoThumbnails(tmp_path / "b")))
    assert outcome.status == "completed"
    assert outcome.assets[0].key == "workspace-temp/user-1/job-1/0.png"
    assert outcome.assets[0].thumbnail_key is None
    assert outcome.assets[0].metadata["thumbnail_error"] == "THUMBNAIL_GENERATION_ERROR"


class SlowStore(LocalStore):
    """A store whose first put waits until another image has been encoded."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.encoded = threading.Event()

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        assert self.encoded.wait(30), "no image was encoded while the first one was being stored"
        super().put(key, data, content_type=content_type)


def test_images_are_encoded_while_others_are_stored(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote storage is slow, and the pipeline waits until everything is stored."""
    store = SlowStore(tmp_path / "slow")
    encoded: list[int] = []

    def counting(image: Image.Image, **options: Any) -> bytes:
        file = encode_png(image, **options)
        encoded.append(1)
        if len(encoded) == 3:
            store.encoded.set()
        return file

    monkeypatch.setattr(assets, "encode_png", counting)
    outcome = generate_images(job(num_images=3), RecordingRun(), replace(services, store=store))
    assert [asset.metadata["seed"] for asset in outcome.assets] == [100, 101, 102]


@contextmanager
def watched_decoding(services: Services, before: Callable[[int], None]) -> Iterator[None]:
    """Call `before` with the number of each VAE decoding, from 1."""
    calls = itertools.count(1)
    decoder = services.models.images()._pipe.vae.decoder  # type: ignore[attr-defined]
    hook = decoder.register_forward_pre_hook(lambda *_: before(next(calls)))
    try:
        yield
    finally:
        hook.remove()


def test_an_image_is_stored_while_the_next_ones_are_decoded(services: Services, tmp_path: Path) -> None:
    """The GPU does not wait for the storage."""
    store = LocalStore(tmp_path / "early")

    class EarlyRun(RecordingRun):
        stored = threading.Event()

        def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
            super().put(store, key, data, content_type)
            if key.endswith("/0.png"):
                self.stored.set()

    def wait_for_first(call: int) -> None:
        assert call == 1 or EarlyRun.stored.wait(30), "the first image was not stored in time"

    with watched_decoding(services, wait_for_first):
        outcome = generate_images(job(num_images=3), EarlyRun(), replace(services, store=store))
    assert [asset.metadata["seed"] for asset in outcome.assets] == [100, 101, 102]


def test_a_fallback_replaces_what_was_stored_before_it(
    services: Services, gradient: str, tmp_path: Path
) -> None:
    """A pass that fails at its last image has stored the first ones: they and their marks are overwritten."""

    def fail(call: int) -> None:
        if call == 2:
            raise RuntimeError("shapes do not match")

    expected = LocalStore(tmp_path / "plain")
    generate_images(job(num_images=3), RecordingRun(), replace(services, store=expected))
    run = RecordingRun()
    with watched_decoding(services, fail):
        outcome = generate_images(job(num_images=3, reference=gradient, denoise_strength=0.9), run, services)
    assert outcome.metadata["reference_error"] == "I2I_PIPELINE_ERROR"
    assert len(outcome.assets) == 3
    for asset in outcome.assets:
        assert services.store.get(asset.key) == expected.get(asset.key)
        assert services.store.get(asset.thumbnail_key) == expected.get(asset.thumbnail_key)


def test_the_strings_that_are_tokenized_are_judged(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with the texts of the job, before anything is generated."""
    handed: list[tuple[str, ...]] = []
    monkeypatch.setattr(services.gate, "check_job", lambda job, *added: handed.append(added))
    weighted = job(prompt="a (light:1.1)(house:1.1)", compel_enabled=True, steps=1)
    generate_images(weighted, RecordingRun(), services)
    assert any("a lighthouse" in texts for texts in handed)
