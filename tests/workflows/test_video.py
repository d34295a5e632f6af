from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from ourvidz.net.client import RequestFailure
from ourvidz.pipelines.base import PreviewRenderer, VideoPipeline
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.references.resolve import Limits, References
from ourvidz.safety.gate import Gate, Terms
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.vram import gpu
from ourvidz.workflows.services import Services
from ourvidz.workflows.video import generate_video

GATE = Gate(Terms(minor=frozenset({"quokka"}), sexual=frozenset({"marmalade"})))
"""Neutral stand-ins; only both together are refused."""

HILLS = "user-library/user-1/hills.png"
"""Where the user's own reference lies."""


@dataclass
class RecordingRun:
    """A run that writes down what it hears and stores for real."""

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


@dataclass
class WanOnly:
    """The warm pipeline of a worker for videos."""

    wan: WanPipeline

    def videos(self) -> VideoPipeline:
        return self.wan

    def memory(self) -> dict[str, Any]:
        return gpu.memory()


@pytest.fixture(scope="module")
def warm(untrained_wan: Path) -> WanOnly:
    pipeline = WanPipeline(Checkpoint(untrained_wan, "tiny"), cap=64)
    pipeline.load()
    return WanOnly(pipeline)


@pytest.fixture(scope="module")
def hills() -> Image.Image:
    """A small landscape: two gradients."""
    across, down = np.meshgrid(np.arange(64), np.arange(64))
    return Image.fromarray(np.stack([across * 3, down * 3, 255 - across], axis=-1).astype(np.uint8))


@pytest.fixture
def use(warm: WanOnly, tmp_path: Path, hills: Image.Image) -> Services:
    """Real models, a real directory with one reference, no network, a gate with stand-in terms."""
    store = LocalStore(tmp_path / "assets")
    store.put(HILLS, encode_png(hills), content_type="image/png")
    references = References(
        lambda url, wanted: RequestFailure("no network here"), store.get, Limits(1 << 20, 1 << 20)
    )
    return Services(models=warm, store=store, gate=GATE, references=references)


def job(**changed: Any) -> VideoJob:
    fields: dict[str, Any] = {
        "id": "job-1",
        "type": "video_fast",
        "user_id": "user-1",
        "expected_time": 180,
        "prompt": "a lighthouse above the sea",
        "steps": 2,
        "guidance_scale": 6.5,
        "width": 32,
        "height": 48,
        "frames": 6,
        "fps": 12,
        "seed": 100,
    }
    return VideoJob(**(fields | changed))


def opened(store: Store, key: str) -> Image.Image:
    picture = Image.open(io.BytesIO(store.get(key)))
    picture.load()
    return picture


def first_frame(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)


def test_a_clip_is_stored_with_its_thumbnail(use: Services) -> None:
    """A completed callback may only name files that can be read, and played."""
    run = RecordingRun()
    outcome = generate_video(job(), run, use)
    assert outcome.status == "completed"
    assert [(asset.type, asset.key, asset.thumbnail_key) for asset in outcome.assets] == [
        ("video", "workspace-temp/user-1/job-1/0.mp4", "workspace-temp/user-1/job-1/0.thumb.webp")
    ]
    found = probe(use.store.get(outcome.assets[0].key))
    assert (found.frames, found.fps, found.width, found.height, found.starts_fast) == (6, 12, 32, 48, True)
    small = opened(use.store, outcome.assets[0].thumbnail_key)
    assert (small.format, small.size) == ("WEBP", (32, 48))
    assert [kind for _, kind in run.puts] == ["video/mp4", "image/webp"]
    assert run.steps == [(0, 2), (1, 2), (2, 2)]
    assert [look().size for look in run.previews] == [(85, 128)]


def test_the_asset_describes_its_clip(use: Services) -> None:
    """Callers show and sort clips by these fields; those of references are on jobs with references only."""
    asset = generate_video(job(), RecordingRun(), use).assets[0]
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
        "file_size_bytes": len(use.store.get(asset.key)),
        "asset_index": 0,
    }


def test_the_outcome_says_what_the_worker_found_out(use: Services) -> None:
    """With the job's own facts it becomes the callback's metadata, which counts the delivered frames."""
    asked = job(width=480, height=832, frames=3)
    metadata = generate_video(asked, RecordingRun(), use).metadata
    assert metadata.pop("generation_time") > 0
    memory = use.models.memory()
    assert {name: metadata.pop(name) for name in memory}.keys() == memory.keys()
    assert metadata == {
        "batch_size": 1,
        "size_capped": True,
        "final_prompt_type": "string",
        "compel_success": False,
        "worker_version": __version__,
    }
    told = asked.callback_metadata() | metadata
    assert (told["frame_num"], told["wan_task"], told["reference_mode"]) == (3, "t2v-1.3B", "none")


@pytest.mark.parametrize("kind", ["image_fast", "image_high"])
def test_an_image_job_stores_a_picture(use: Services, kind: str) -> None:
    """Its caller puts it into an img element."""
    outcome = generate_video(job(type=kind, frames=1), RecordingRun(), use)
    asset = outcome.assets[0]
    assert (asset.type, asset.key) == ("image", "workspace-temp/user-1/job-1/0.png")
    picture = opened(use.store, asset.key)
    assert (picture.format, picture.size) == ("PNG", (32, 48))
    assert asset.metadata == {
        "width": 32,
        "height": 48,
        "format": "png",
        "batch_size": 1,
        "steps": 2,
        "effective_steps": 2,
        "guidance_scale": 6.5,
        "seed": 100,
        "file_size_bytes": len(use.store.get(asset.key)),
        "asset_index": 0,
    }
    assert opened(use.store, asset.thumbnail_key).format == "WEBP"


def test_a_clip_of_one_frame_is_still_a_clip(use: Services) -> None:
    """Its type says video, so its caller puts it into a video element."""
    asset = generate_video(job(frames=1), RecordingRun(), use).assets[0]
    assert (asset.type, probe(use.store.get(asset.key)).frames) == ("video", 1)


def test_a_reference_in_storage_steers_the_clip(use: Services) -> None:
    """The bug of the upstream script was to accept references and ignore them."""
    guided = job(reference_mode="start", start_reference=HILLS, negative_prompt="fog")
    outcome = generate_video(guided, RecordingRun(), use)
    plain = generate_video(job(id="job-2", negative_prompt="fog"), RecordingRun(), use)
    with_it, without = (first_frame(use.store.get(made.assets[0].key)) for made in (outcome, plain))
    assert np.abs(with_it - without).mean() > 3
    assert outcome.metadata["reference_backend"] == "latent_replacement"
    assert "reference_fallback" not in outcome.metadata
    told = outcome.assets[0].metadata
    assert (told["denoise_strength"], told["pipeline"]) == (0.15, "image_to_video")
    assert (told["resize_policy"], told["negative_prompt_used"]) == ("center_crop", True)
    assert not {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"} & set(
        plain.assets[0].metadata
    )


@pytest.mark.parametrize(
    ("mode", "given"),
    [
        ("single", {"single_reference": HILLS}),
        ("end", {"end_reference": HILLS}),
        ("both", {"start_reference": HILLS, "end_reference": HILLS}),
    ],
)
def test_every_mode_gets_the_references_it_needs(use: Services, mode: str, given: dict[str, str]) -> None:
    """The payload names up to three; the mode decides which are fetched."""
    outcome = generate_video(job(reference_mode=mode, **given), RecordingRun(), use)
    assert outcome.metadata["reference_backend"] == ("sdedit" if mode == "single" else "latent_replacement")


def test_a_picture_may_follow_a_data_uri(use: Services, hills: Image.Image) -> None:
    """Small references come in the payload itself."""
    uri = "data:image/png;base64," + base64.b64encode(encode_png(hills)).decode()
    asked = job(
        type="image_high", frames=1, reference_mode="single", single_reference=uri, denoise_strength=0.5
    )
    outcome = generate_video(asked, RecordingRun(), use)
    told = outcome.assets[0].metadata
    assert outcome.metadata["reference_backend"] == "sdedit"
    assert (told["format"], told["pipeline"], told["steps"], told["effective_steps"]) == (
        "png",
        "img2img",
        2,
        1,
    )


@pytest.mark.parametrize(
    ("mode", "given", "pipeline"),
    [
        ("start", {"start_reference": "https://example.org/hills.png"}, "text_to_video"),
        ("start", {"start_reference": "user-library/user-1/nothing.png"}, "text_to_video"),
        ("both", {"start_reference": HILLS, "end_reference": "data:image/png;base64,AAAA"}, "text_to_video"),
        ("single", {"single_reference": "https://example.org/x", "frames": 1}, "text_to_image"),
    ],
)
def test_an_unusable_reference_falls_back_to_the_prompt_and_says_so(
    use: Services, mode: str, given: dict[str, Any], pipeline: str
) -> None:
    """The caller gets a clip and learns that the reference did not shape it."""
    asked = job(reference_mode=mode, denoise_strength=0.4, **given)
    outcome = generate_video(asked, RecordingRun(), use)
    plain = generate_video(job(id="job-2", frames=asked.frames), RecordingRun(), use)
    assert use.store.get(outcome.assets[0].key) == use.store.get(plain.assets[0].key)
    assert outcome.metadata["reference_fallback"] is True
    assert outcome.metadata["reference_error"] == "REFERENCE_FRAME_ERROR"
    assert outcome.metadata["reference_error_reason"]
    assert outcome.metadata["reference_backend"] is None
    told = outcome.assets[0].metadata
    assert (told["denoise_strength"], told["pipeline"], told["resize_policy"]) == (0.4, pipeline, None)
    assert told["negative_prompt_used"] is False
    assert (asked.callback_metadata() | outcome.metadata)["reference_mode"] == mode


def test_somebody_else_s_reference_fails_the_job(use: Services) -> None:
    """Falling back would tell the caller whether the file is there."""
    run = RecordingRun()
    with pytest.raises(ReferenceForbidden):
        generate_video(job(reference_mode="start", start_reference="user-library/user-2/hills.png"), run, use)
    assert (run.steps, run.puts) == ([], [])


def test_every_stored_file_says_that_a_machine_made_it(use: Services) -> None:
    """Marking is not an option of the caller, and what was made from a picture says that too."""
    for asked, source in (
        (job(), "trainedAlgorithmicMedia"),
        (job(type="image_fast", frames=1), "trainedAlgorithmicMedia"),
        (job(reference_mode="start", start_reference="user-library/user-1/no"), "trainedAlgorithmicMedia"),
        (job(reference_mode="start", start_reference=HILLS), "compositeWithTrainedAlgorithmicMedia"),
        (
            job(type="image_fast", frames=1, reference_mode="single", single_reference=HILLS),
            "compositeWithTrainedAlgorithmicMedia",
        ),
    ):
        run = RecordingRun()
        generate_video(asked, run, use)
        assert [read_source_type(use.store.get(key)) for key, _ in run.puts] == [VOCABULARY + source] * 2


def test_no_stored_file_holds_the_prompt_or_the_user(use: Services) -> None:
    """Files are handed on; who asked for what is nobody else's business."""
    run = RecordingRun()
    generate_video(job(), run, use)
    for key, _ in run.puts:
        data = use.store.get(key)
        assert b"lighthouse" not in data
        assert b"user-1" not in data


def test_a_second_attempt_writes_the_same_files(use: Services) -> None:
    """Whichever attempt wins, its callback names files that are there and right."""
    first, second = RecordingRun(), RecordingRun()
    generate_video(job(), first, use)
    generate_video(job(), second, use)
    assert first.puts == second.puts


def test_what_the_gate_refuses_never_reaches_the_model(use: Services) -> None:
    """The door may be older than the worker: the worker looks again."""
    run = RecordingRun()
    with pytest.raises(PolicyViolation):
        generate_video(job(prompt="a quokka by the sea", negative_prompt="marmalade"), run, use)
    assert (run.steps, run.puts) == ([], [])


def test_a_cancelled_job_stores_nothing(use: Services) -> None:
    """Half a clip would look like a result."""
    run = RecordingRun(cancel_at=1)
    with pytest.raises(Cancelled):
        generate_video(job(), run, use)
    assert run.puts == []


def test_a_job_without_a_user_has_nowhere_to_store(use: Services) -> None:
    """Keys begin with the user; making one up would mix people's files."""
    with pytest.raises(InvalidParameters) as refused:
        generate_video(job(user_id=None), RecordingRun(), use)
    assert refused.value.field == "user_id"


class NoSmallOnes(LocalStore):
    """A storage that has room for clips and none for thumbnails."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        if key.endswith(".webp"):
            raise StorageError("the disk is full")
        super().put(key, data, content_type=content_type)


def test_a_thumbnail_that_cannot_be_stored_costs_no_clip(use: Services, tmp_path: Path) -> None:
    """The caller has paid for the clip."""
    outcome = generate_video(job(), RecordingRun(), replace(use, store=NoSmallOnes(tmp_path / "small")))
    assert outcome.status == "completed"
    assert outcome.assets[0].thumbnail_key is None
    assert outcome.assets[0].metadata["thumbnail_error"] == "THUMBNAIL_GENERATION_ERROR"
