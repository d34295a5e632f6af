"""Jobs that are stopped between two steps and continued by another pipeline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ourvidz.errors import Cancelled
from ourvidz.pipelines import conditions
from ourvidz.pipelines.base import GeneratedImages, GeneratedVideo, ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.sdxl.schedulers import SCHEDULERS
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import image_job, video_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    batch_sizes,
    difference,
    first_passes,
    levels,
    no_progress,
    out_of_memory,
)
from tests.pipelines.wan.references import landscape_references


class MemoryCheckpoints:
    """Checkpoints in memory: one is due after every step, and the newest one is kept."""

    def __init__(self, *files: bytes) -> None:
        self.files = list(files)

    def stored(self) -> Iterable[bytes]:
        return list(self.files)

    def is_due(self) -> bool:
        return True

    def save(self, encode: Callable[[], bytes]) -> None:
        self.files = [encode()]


def stop_before(step: int) -> Callable[[int, int], None]:
    """An `on_step` that stops the job when this step is finished, before its checkpoint is saved."""

    def on_step(done: int, total: int) -> None:
        if done == step:
            raise Cancelled("stopped")

    return on_step


def interrupted(pipeline: Any, job: Any, *, at: int, **inputs: Any) -> MemoryCheckpoints:
    """The checkpoint of a job that was stopped after `at` steps."""
    checkpoints = MemoryCheckpoints()
    with pytest.raises(Cancelled):
        pipeline.generate(job, on_step=stop_before(at + 1), checkpoints=checkpoints, **inputs)
    return checkpoints


def pixels(result: GeneratedImages | GeneratedVideo) -> list[bytes]:
    images = result.images if isinstance(result, GeneratedImages) else result.frames
    return [image.tobytes() for image in images]


def metadata(result: GeneratedImages | GeneratedVideo) -> dict[str, Any]:
    """What both runs report alike: prompts are encoded again in another process."""
    return {name: value for name, value in result.metadata.items() if name != "embedding_cache"}


def sdxl_pipeline(checkpoint: Checkpoint, **options: Any) -> SDXLPipeline:
    pipeline = SDXLPipeline(checkpoint, cap=128, options=SDXLOptions(previews=False, **options))
    pipeline.load()
    return pipeline


@pytest.fixture
def other_sdxl(sdxl_checkpoint: Checkpoint) -> SDXLPipeline:
    """What another worker process loads."""
    pipeline = SDXLPipeline(sdxl_checkpoint, cap=128)
    pipeline.load()
    return pipeline


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_continued_image_has_the_same_bytes(sdxl_checkpoint: Checkpoint, scheduler: str) -> None:
    """Callers compare pictures by seed: that a worker was killed must not show. With every scheduler: each
    has another state, and some draw noise."""
    job = image_job(steps=7)
    one, other = (sdxl_pipeline(sdxl_checkpoint, scheduler=scheduler) for _ in range(2))
    expected = one.generate(job, on_step=no_progress)
    checkpoints = interrupted(one, job, at=4)
    with batch_sizes(other._pipe.unet) as calls:
        result = other.generate(job, on_step=no_progress, checkpoints=checkpoints)
    assert pixels(result) == pixels(expected)
    assert metadata(result) == metadata(expected) | {"resumed_from_step": 4}
    total = 2 * 7 - 1 if scheduler == "heun" else 7
    assert len(calls) == total - 4


@pytest.mark.parametrize(
    "changes",
    [
        {"denoise_strength": 0.5, "steps": 14},
        {"exact_copy_mode": True, "prompt": "", "denoise_strength": 0.05, "steps": 60},
    ],
)
def test_a_continued_image_from_a_reference_has_the_same_bytes(
    sdxl: SDXLPipeline, other_sdxl: SDXLPipeline, changes: dict[str, Any]
) -> None:
    """The reference's latents are not saved: they are in the state of the first step only."""
    reference = Image.linear_gradient("L").convert("RGB")
    job = image_job(reference="user-library/user-1/a.png", **changes)
    expected = sdxl.generate(job, reference=reference, on_step=no_progress)
    checkpoints = interrupted(sdxl, job, at=1, reference=reference)
    result = other_sdxl.generate(job, reference=reference, on_step=no_progress, checkpoints=checkpoints)
    assert pixels(result) == pixels(expected)
    assert result.metadata["resumed_from_step"] == 1


def test_finished_batches_are_not_denoised_again(sdxl: SDXLPipeline, other_sdxl: SDXLPipeline) -> None:
    """Memory ran out for three images at a time: the job continues in its second batch of smaller ones, with
    the fallback that it had come to."""
    job, reported = image_job(steps=3, num_images=3), []
    with out_of_memory(sdxl._pipe.unet, lambda tensor: len(tensor) > 4):
        expected = sdxl.generate(job, on_step=no_progress)
        checkpoints = interrupted(sdxl, job, at=4)
    with batch_sizes(other_sdxl._pipe.unet) as sizes:
        result = other_sdxl.generate(
            job, on_step=lambda *progress: reported.append(progress), checkpoints=checkpoints
        )
    assert pixels(result) == pixels(expected)
    assert metadata(result) == metadata(expected) | {"resumed_from_step": 4}
    assert (result.batch_size, sizes) == (expected.batch_size, [2, 2])
    assert reported == [(4, 6), (5, 6), (6, 6)]


def test_memory_that_runs_out_after_a_continuation_starts_the_batch_over(
    sdxl: SDXLPipeline, other_sdxl: SDXLPipeline
) -> None:
    """The state is restored once; the next fallback has smaller batches."""
    job = image_job(steps=3, num_images=3)
    checkpoints = interrupted(sdxl, job, at=2)
    with out_of_memory(other_sdxl._pipe.unet, first_passes(1)) as sizes:
        result = other_sdxl.generate(job, on_step=no_progress, checkpoints=checkpoints)
    assert sizes == [6, 6, 6, 6]
    assert "resumed_from_step" not in result.metadata
    # Not the same bytes: this fallback decodes the images one by one.
    expected = sdxl.generate(job, on_step=no_progress)
    assert difference(levels(result.images), levels(expected.images)) <= MAX_DIFFERENCE


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("mode", ["none", "single", "both"])
def test_a_continued_clip_has_the_same_bytes(
    wan: WanPipeline, wan_checkpoint: Checkpoint, solver: str, mode: str
) -> None:
    """Fixed frames and both solvers: the noise and the latents of references are computed again."""
    job = video_job(steps=6, frames=9, solver=solver, reference_mode=mode, **_references(mode))
    references = landscape_references()
    other = WanPipeline(wan_checkpoint, cap=128)
    expected = wan.generate(job, references=references, on_step=no_progress)
    checkpoints = interrupted(wan, job, at=3, references=references)
    with batch_sizes(other_transformer(other)) as calls:
        result = other.generate(job, references=references, on_step=no_progress, checkpoints=checkpoints)
    assert pixels(result) == pixels(expected)
    assert metadata(result) == metadata(expected) | {"resumed_from_step": 3}
    assert len(calls) == 2 * (expected.asset_metadata["effective_steps"] - 3)


def other_transformer(wan: WanPipeline) -> torch.nn.Module:
    wan.load()
    transformer: torch.nn.Module = wan.components.pipe.transformer
    return transformer


def _references(mode: str) -> dict[str, str]:
    names = {"none": (), "single": ("single",), "both": ("start", "end")}[mode]
    return {f"{name}_reference": f"user-library/user-1/{name}.png" for name in names}


def test_the_state_after_the_last_step_is_enough(sdxl: SDXLPipeline, wan: WanPipeline) -> None:
    """Killed while it was decoded: nothing is denoised again."""
    checkpoints = MemoryCheckpoints()
    expected = sdxl.generate(image_job(), on_step=no_progress, checkpoints=checkpoints)
    with batch_sizes(sdxl._pipe.unet) as calls:
        result = sdxl.generate(image_job(), on_step=no_progress, checkpoints=checkpoints)
    assert (pixels(result), calls) == (pixels(expected), [])
    clip = wan.generate(video_job(), on_step=no_progress, checkpoints=checkpoints)
    again = wan.generate(video_job(), on_step=no_progress, checkpoints=checkpoints)
    assert pixels(again) == pixels(clip)
    assert (again.metadata["resumed_from_step"], clip.metadata["resume_refused"]) == (
        2,
        "different from the checkpoint: job, options, reference, weights",
    )


def damaged(data: bytes) -> dict[str, bytes]:
    position = len(data) // 2
    return {
        "empty": b"",
        "truncated": data[:-1],
        "half": data[:position],
        "a changed byte": data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :],
        "another format": b"\x80\x04K\x01." + data,
    }


@pytest.mark.parametrize("damage", ["empty", "truncated", "half", "a changed byte", "another format"])
def test_a_damaged_checkpoint_starts_over(sdxl: SDXLPipeline, damage: str) -> None:
    """A full disk, a failing one: the job ends as it would have without a checkpoint, and says so."""
    job = image_job(steps=3)
    (data,) = interrupted(sdxl, job, at=2).files
    result = sdxl.generate(job, on_step=no_progress, checkpoints=MemoryCheckpoints(damaged(data)[damage]))
    assert result.metadata["resume_refused"] == "the checkpoint is damaged"
    assert "resumed_from_step" not in result.metadata
    assert pixels(result) == pixels(sdxl.generate(job, on_step=no_progress))


def test_an_older_checkpoint_serves_where_the_newest_one_is_damaged(sdxl: SDXLPipeline) -> None:
    """Of two attempts: the state of the first is as good as any."""
    job = image_job(steps=3)
    (data,) = interrupted(sdxl, job, at=1).files
    result = sdxl.generate(job, on_step=no_progress, checkpoints=MemoryCheckpoints(b"", data))
    assert result.metadata["resumed_from_step"] == 1
    assert "resume_refused" not in result.metadata


@pytest.mark.parametrize(("changes", "reason"), [({"seed": 8}, "job"), ({"prompt": "a blue square"}, "job")])
def test_another_job_starts_over(sdxl: SDXLPipeline, changes: dict[str, Any], reason: str) -> None:
    """The id of a deleted job may be given again."""
    checkpoints = interrupted(sdxl, image_job(steps=3), at=2)
    result = sdxl.generate(image_job(steps=3, **changes), on_step=no_progress, checkpoints=checkpoints)
    assert result.metadata["resume_refused"] == f"different from the checkpoint: {reason}"


def test_another_reference_starts_over(wan: WanPipeline) -> None:
    """The picture behind a URL may be another one when the job runs again."""
    job = video_job(steps=4, reference_mode="start", **_references("both"))
    checkpoints = interrupted(wan, job, at=2, references=landscape_references())
    other = ReferenceImages(start=Image.new("RGB", (32, 32), "teal"))
    result = wan.generate(job, references=other, on_step=no_progress, checkpoints=checkpoints)
    assert result.metadata["resume_refused"] == "different from the checkpoint: reference"


@pytest.mark.parametrize("condition", ["library_versions", "device_kind"])
def test_other_libraries_and_devices_start_over(
    sdxl: SDXLPipeline, monkeypatch: pytest.MonkeyPatch, condition: str
) -> None:
    """Half a picture of each would be a picture of neither."""
    checkpoints = interrupted(sdxl, image_job(steps=3), at=2)
    monkeypatch.setattr(conditions, condition, lambda *_: "another")
    result = sdxl.generate(image_job(steps=3), on_step=no_progress, checkpoints=checkpoints)
    name = {"library_versions": "libraries", "device_kind": "device"}[condition]
    assert result.metadata["resume_refused"] == f"different from the checkpoint: {name}"


def test_other_weights_and_options_start_over(
    sdxl: SDXLPipeline, sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A worker with another checkpoint took the job over, under the same name or with another scheduler."""
    checkpoints = interrupted(sdxl, image_job(steps=3), at=2)
    shutil.copytree(sdxl_checkpoint.path, tmp_path / "changed")
    with (tmp_path / "changed" / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\1")
    other = sdxl_pipeline(Checkpoint(tmp_path / "changed", "tiny"), scheduler="euler_a")
    result = other.generate(image_job(steps=3), on_step=no_progress, checkpoints=checkpoints)
    assert result.metadata["resume_refused"] == "different from the checkpoint: options, weights"


def test_where_a_checkpoint_lies_does_not_matter(
    sdxl: SDXLPipeline, sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The worker of another host continues the job."""
    checkpoints = interrupted(sdxl, image_job(steps=3), at=2)
    shutil.copytree(sdxl_checkpoint.path, tmp_path / "elsewhere")
    other = SDXLPipeline(Checkpoint(tmp_path / "elsewhere", "tiny"), cap=128)
    result = other.generate(image_job(steps=3), on_step=no_progress, checkpoints=checkpoints)
    assert result.metadata["resumed_from_step"] == 2


def test_a_step_cache_switches_checkpoints_off(wan_checkpoint: Checkpoint) -> None:
    """A cache keeps results of earlier steps, which the state does not have."""
    wan = WanPipeline(wan_checkpoint, cap=128, options=WanOptions(cache="first_block", previews=False))
    checkpoints = MemoryCheckpoints()
    result = wan.generate(video_job(), on_step=no_progress, checkpoints=checkpoints)
    assert checkpoints.files == []
    reason = "the step cache first_block keeps results of earlier steps"
    assert result.metadata["checkpoints_off"] == wan.info()["checkpoints_off"] == reason
    assert "checkpoints_off" not in wan.generate(video_job(), on_step=no_progress).metadata


def test_a_checkpoint_is_small_and_no_pickle(sdxl: SDXLPipeline) -> None:
    """It is written every few seconds, and read by workers: a pickle could run code there."""
    (data,) = interrupted(sdxl, image_job(steps=3), at=2).files
    latents = 4 * (64 // 8) ** 2 * 4
    assert latents < len(data) < latents + 16_384
    length = int.from_bytes(data[:8], "little")
    assert data[8 : 8 + length].lstrip().startswith(b"{")


def test_a_scheduler_with_an_unknown_state_switches_checkpoints_off(sdxl: SDXLPipeline) -> None:
    """One of a later release of the library, say: the job runs, and says that it cannot be continued."""
    scheduler = sdxl._pipe.scheduler
    scheduler.lookahead = object()
    checkpoints = MemoryCheckpoints()

    def replace_it(done: int, total: int) -> None:
        scheduler.lookahead = object()

    try:
        result = sdxl.generate(image_job(), on_step=replace_it, checkpoints=checkpoints)
    finally:
        del scheduler.lookahead
    assert (checkpoints.files, result.metadata["checkpoints_off"]) == ([], "scheduler.lookahead is a object")
