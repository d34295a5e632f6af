"""The workflow of Wan jobs on a real pipeline."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ourvidz import __version__
from ourvidz.errors import (
    Cancelled,
    InvalidParameters,
    PolicyViolation,
    ReferenceForbidden,
    StorageError,
)
from ourvidz.jobs.job import VideoJob
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import VOCABULARY, read_source_type
from ourvidz.media.video import probe
from ourvidz.pipelines.base import VideoPipeline
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.vram import gpu
from ourvidz.workflows.services import Services
from ourvidz.workflows.video import generate_video
from tests import factories
from tests.factories import RecordingRun

ENHANCEMENT = {"source": "qwen_base", "model": "tiny", "seconds": 0.1, "system_prompt": "default"}
GRADIENT = "user-library/user-1/gradient.png"
"""The storage path of the user's own reference."""


@dataclass
class WanOnly:
    """The models of a Wan worker."""

    wan: WanPipeline

    def videos(self) -> VideoPipeline:
        return self.wan

    def memory(self) -> dict[str, Any]:
        return gpu.memory()


@pytest.fixture(scope="module")
def models(untrained_wan: Path) -> WanOnly:
    pipeline = WanPipeline(Checkpoint(untrained_wan, "tiny"), cap=64)
    pipeline.load()
    return WanOnly(pipeline)


@pytest.fixture(scope="module")
def gradient() -> Image.Image:
    """A small image of two gradients."""
    across, down = np.meshgrid(np.arange(64), np.arange(64))
    return Image.fromarray(np.stack([across * 3, down * 3, 255 - across], axis=-1).astype(np.uint8))


@pytest.fixture
def services(models: WanOnly, tmp_path: Path, gradient: Image.Image) -> Services:
    """Real models, a real directory with one reference, no network, a gate with stand-in terms."""
    services = factories.services(models, tmp_path)
    services.store.put(GRADIENT, encode_png(gradient), content_type="image/png")
    return services


def job(**changes: Any) -> VideoJob:
    """A Wan job of six frames whose prompt does not occur in the files."""
    fields = {"prompt": "a lighthouse above the sea", "height": 48, "frames": 6, "fps": 12, "seed": 100}
    return factories.video_job(**(fields | changes))


def read_image(store: Store, key: str) -> Image.Image:
    image = Image.open(io.BytesIO(store.get(key)))
    image.load()
    return image


def first_frame(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)


def test_a_clip_is_stored_with_its_thumbnail(services: Services) -> None:
    """A completed callback may only name files that can be read, and played."""
    run = RecordingRun()
    outcome = generate_video(job(), run, services)
    assert outcome.status == "completed"
    assert [(asset.type, asset.key, asset.thumbnail_key) for asset in outcome.assets] == [
        ("video", "workspace-temp/user-1/job-1/0.mp4", "workspace-temp/user-1/job-1/0.thumb.webp")
    ]
    found = probe(services.store.get(outcome.assets[0].key))
    assert (found.frames, found.fps, found.width, found.height, found.starts_fast) == (6, 12, 32, 48, True)
    small = read_image(services.store, outcome.assets[0].thumbnail_key)
    assert (small.format, small.size) == ("WEBP", (32, 48))
    assert [kind for _, kind in run.puts] == ["video/mp4", "image/webp"]
    assert run.steps == [(0, 2), (1, 2), (2, 2)]
    assert [render().size for render in run.previews] == [(85, 128)]


def test_the_asset_describes_its_clip(services: Services) -> None:
    """Callers show and sort clips by these fields; those of references are on jobs with references only."""
    asset = generate_video(job(), RecordingRun(), services).assets[0]
    assert asset.metadata == {
        "width": 32,
        "height": 48,
        "format": "mp4",
        "fps": 12,
        "frames": 6,
        "frames_generated": 9,
        "duration_seconds": 0.5,
        "batch_size": 1,
        "steps": 2,
        "effective_steps": 2,
        "guidance_scale": 6.5,
        "seed": 100,
        "file_size_bytes": len(services.store.get(asset.key)),
        "asset_index": 0,
    }


def test_the_outcome_reports_what_the_worker_measured(services: Services) -> None:
    """With the job's own metadata it becomes the callback's, which counts the delivered frames."""
    requested = job(width=480, height=832, frames=3)
    metadata = generate_video(requested, RecordingRun(), services).metadata
    assert metadata.pop("generation_time") > 0
    memory = services.models.memory()
    assert {name: metadata.pop(name) for name in memory}.keys() == memory.keys()
    for measured in ("embedding_cache", "receipt"):
        assert metadata.pop(measured)
    assert metadata == {
        "batch_size": 1,
        "size_capped": True,
        "final_prompt_type": "string",
        "compel_success": False,
        "worker_version": __version__,
    }
    merged = requested.callback_metadata() | metadata
    assert (merged["frame_num"], merged["wan_task"], merged["reference_mode"]) == (3, "t2v-1.3B", "none")


@pytest.mark.parametrize("kind", ["image_fast", "image_high"])
def test_an_image_job_stores_an_image(services: Services, kind: str) -> None:
    """Its caller puts it into an img element."""
    outcome = generate_video(job(type=kind, frames=1), RecordingRun(), services)
    asset = outcome.assets[0]
    assert (asset.type, asset.key) == ("image", "workspace-temp/user-1/job-1/0.png")
    image = read_image(services.store, asset.key)
    assert (image.format, image.size) == ("PNG", (32, 48))
    assert asset.metadata == {
        "width": 32,
        "height": 48,
        "format": "png",
        "batch_size": 1,
        "steps": 2,
        "effective_steps": 2,
        "guidance_scale": 6.5,
        "seed": 100,
        "file_size_bytes": len(services.store.get(asset.key)),
        "asset_index": 0,
    }
    assert read_image(services.store, asset.thumbnail_key).format == "WEBP"


def test_a_clip_of_one_frame_is_still_a_clip(services: Services) -> None:
    """Its type says video, so its caller puts it into a video element."""
    asset = generate_video(job(frames=1), RecordingRun(), services).assets[0]
    assert (asset.type, probe(services.store.get(asset.key)).frames) == ("video", 1)


def test_a_reference_in_storage_steers_the_clip(services: Services) -> None:
    """The bug of the upstream script was to accept references and ignore them."""
    guided = job(reference_mode="start", start_reference=GRADIENT, negative_prompt="fog")
    outcome = generate_video(guided, RecordingRun(), services)
    plain = generate_video(job(id="job-2", negative_prompt="fog"), RecordingRun(), services)
    guided_frame, plain_frame = (
        first_frame(services.store.get(each.assets[0].key)) for each in (outcome, plain)
    )
    assert np.abs(guided_frame - plain_frame).mean() > 3
    assert outcome.metadata["reference_backend"] == "latent_replacement"
    assert "reference_fallback" not in outcome.metadata
    metadata = outcome.assets[0].metadata
    assert (metadata["denoise_strength"], metadata["pipeline"]) == (0.15, "image_to_video")
    assert (metadata["resize_policy"], metadata["negative_prompt_used"]) == ("center_crop", True)
    assert not {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"} & set(
        plain.assets[0].metadata
    )


@pytest.mark.parametrize(
    ("mode", "given"),
    [
        ("single", {"single_reference": GRADIENT}),
        ("end", {"end_reference": GRADIENT}),
        ("both", {"start_reference": GRADIENT, "end_reference": GRADIENT}),
    ],
)
def test_every_mode_gets_the_references_it_needs(
    services: Services, mode: str, given: dict[str, str]
) -> None:
    """The payload has up to three; the mode decides which are resolved."""
    outcome = generate_video(job(reference_mode=mode, **given), RecordingRun(), services)
    assert outcome.metadata["reference_backend"] == ("sdedit" if mode == "single" else "latent_replacement")


def test_the_outcome_tells_the_tries_of_the_slowest_download(services: Services) -> None:
    """One number for a job, however many references it has."""
    downloaded = factories.downloaded_reference(Image.linear_gradient("L"), tries=3)
    requested = job(reference_mode="start", start_reference="https://example.org/gradient.png")
    outcome = generate_video(requested, RecordingRun(), replace(services, references=downloaded))
    assert outcome.metadata["reference_tries"] == 3


def test_a_reference_may_be_a_data_uri(services: Services, gradient: Image.Image) -> None:
    """Small references are part of the payload."""
    uri = "data:image/png;base64," + base64.b64encode(encode_png(gradient)).decode()
    requested = job(
        type="image_high", frames=1, reference_mode="single", single_reference=uri, denoise_strength=0.5
    )
    outcome = generate_video(requested, RecordingRun(), services)
    metadata = outcome.assets[0].metadata
    assert outcome.metadata["reference_backend"] == "sdedit"
    assert (metadata["format"], metadata["pipeline"], metadata["steps"], metadata["effective_steps"]) == (
        "png",
        "img2img",
        2,
        1,
    )


@pytest.mark.parametrize(
    ("mode", "given", "pipeline"),
    [
        ("start", {"start_reference": "https://example.org/gradient.png"}, "text_to_video"),
        ("start", {"start_reference": "user-library/user-1/nothing.png"}, "text_to_video"),
        (
            "both",
            {"start_reference": GRADIENT, "end_reference": "data:image/png;base64,AAAA"},
            "text_to_video",
        ),
        ("single", {"single_reference": "https://example.org/x", "frames": 1}, "text_to_image"),
    ],
)
def test_an_unusable_reference_falls_back_to_the_prompt(
    services: Services, mode: str, given: dict[str, Any], pipeline: str
) -> None:
    """The caller gets a clip, and the metadata says that the reference was not used."""
    requested = job(reference_mode=mode, denoise_strength=0.4, **given)
    outcome = generate_video(requested, RecordingRun(), services)
    plain = generate_video(job(id="job-2", frames=requested.frames), RecordingRun(), services)
    assert services.store.get(outcome.assets[0].key) == services.store.get(plain.assets[0].key)
    assert outcome.metadata["reference_fallback"] is True
    assert outcome.metadata["reference_error"] == "REFERENCE_FRAME_ERROR"
    assert outcome.metadata["reference_error_reason"]
    assert outcome.metadata["reference_backend"] is None
    metadata = outcome.assets[0].metadata
    assert (metadata["denoise_strength"], metadata["pipeline"], metadata["resize_policy"]) == (
        0.4,
        pipeline,
        None,
    )
    assert metadata["negative_prompt_used"] is False
    assert (requested.callback_metadata() | outcome.metadata)["reference_mode"] == mode


def test_another_users_reference_fails_the_job(services: Services) -> None:
    """A fallback would reveal whether the file exists."""
    run = RecordingRun()
    with pytest.raises(ReferenceForbidden):
        generate_video(
            job(reference_mode="start", start_reference="user-library/user-2/gradient.png"), run, services
        )
    assert (run.steps, run.puts) == ([], [])


def test_every_stored_file_is_marked_as_machine_made(services: Services) -> None:
    """The mark is not an option of the caller; a clip with a reference is marked as composed."""
    for requested, source in (
        (job(), "trainedAlgorithmicMedia"),
        (job(type="image_fast", frames=1), "trainedAlgorithmicMedia"),
        (job(reference_mode="start", start_reference="user-library/user-1/no"), "trainedAlgorithmicMedia"),
        (job(reference_mode="start", start_reference=GRADIENT), "compositeWithTrainedAlgorithmicMedia"),
        (
            job(type="image_fast", frames=1, reference_mode="single", single_reference=GRADIENT),
            "compositeWithTrainedAlgorithmicMedia",
        ),
    ):
        run = RecordingRun()
        generate_video(requested, run, services)
        assert [read_source_type(services.store.get(key)) for key, _ in run.puts] == [VOCABULARY + source] * 2


def test_no_stored_file_holds_the_prompt_or_the_user(services: Services) -> None:
    """Files are passed on; prompts and user ids are private."""
    run = RecordingRun()
    generate_video(job(), run, services)
    for key, _ in run.puts:
        data = services.store.get(key)
        assert b"lighthouse" not in data
        assert b"user-1" not in data


def test_a_second_attempt_writes_the_same_files(services: Services) -> None:
    """Whichever attempt commits, its callback names the right files."""
    first, second = RecordingRun(), RecordingRun()
    generate_video(job(), first, services)
    generate_video(job(), second, services)
    assert first.puts == second.puts


def test_what_the_gate_refuses_never_reaches_the_model(services: Services) -> None:
    """The shim may run an older release than the worker, so the worker checks again."""
    run = RecordingRun()
    with pytest.raises(PolicyViolation):
        generate_video(job(prompt="a quokka by the sea", negative_prompt="marmalade"), run, services)
    assert (run.steps, run.puts) == ([], [])


def test_a_cancelled_job_stores_nothing(services: Services) -> None:
    """A part of a clip would look like a result."""
    run = RecordingRun(stop_at=1)
    with pytest.raises(Cancelled):
        generate_video(job(), run, services)
    assert run.puts == []


def test_a_job_without_a_user_cannot_store(services: Services) -> None:
    """Keys begin with the user id; a made-up one would mix users' files."""
    with pytest.raises(InvalidParameters) as refused:
        generate_video(job(user_id=None), RecordingRun(), services)
    assert refused.value.field == "user_id"


class NoThumbnails(LocalStore):
    """A store that refuses thumbnails."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        if key.endswith(".webp"):
            raise StorageError("the disk is full")
        super().put(key, data, content_type=content_type)


def test_a_thumbnail_that_cannot_be_stored_fails_no_job(services: Services, tmp_path: Path) -> None:
    """The clip is already there."""
    outcome = generate_video(job(), RecordingRun(), replace(services, store=NoThumbnails(tmp_path / "small")))
    assert outcome.status == "completed"
    assert outcome.assets[0].thumbnail_key is None
    assert outcome.assets[0].metadata["thumbnail_error"] == "THUMBNAIL_GENERATION_ERROR"


def test_the_text_that_reaches_the_encoder_is_judged(services: Services) -> None:
    """An enhanced prompt comes from the ledger: the worker judges it with the texts of its job."""
    first, second = factories.REFUSED_TEXT.split()
    run = RecordingRun(enhancement_result={"prompt": f"{second[:3]}&shy;{second[3:]}", **ENHANCEMENT})
    with pytest.raises(PolicyViolation):
        generate_video(job(prompt=f"a {first} on a hill", enhance_prompt=True), run, services)
    assert run.puts == []
