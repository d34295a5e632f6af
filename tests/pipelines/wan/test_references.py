"""Clips with reference images on the text-to-video checkpoint."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.reference_guidance import plan_references
from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor
from tests.factories import video_job
from tests.pipelines.helpers import MAX_DIFFERENCE, batch_sizes, clip_levels, difference, no_progress
from tests.pipelines.wan.references import landscape_references


@pytest.fixture(scope="module")
def references() -> ReferenceImages:
    return landscape_references()


def round_trip(wan: WanPipeline, job: VideoJob, image: Image.Image | None) -> torch.Tensor:
    """The image after encoding and decoding, (3, height, width): no model with this VAE can come nearer."""
    assert image is not None
    vae = VideoVAE(wan.components.pipe.vae)
    with torch.no_grad():
        return vae.decode(vae.encode(image_tensor(image, job.width, job.height)))[0]


def run_stages(
    wan: WanPipeline, job: VideoJob, references: ReferenceImages
) -> tuple[torch.Tensor, torch.Tensor]:
    """The finished latents, and the frames before they are rounded to bytes."""
    with torch.no_grad():
        plan = plan_references(job)
        latents = wan.denoise(
            job,
            wan.encode(job),
            wan.timesteps(job, plan),
            wan.latents(job, plan, references),
            progress=ProgressReporter(no_progress),
        )
        return latents, wan.decode(latents)


def test_a_missing_reference_is_refused(wan: WanPipeline) -> None:
    """In the check, the first stage."""
    with pytest.raises(InvalidParameters, match="start reference"):
        wan.generate(video_job(reference_mode="start"), on_step=no_progress)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("mode", ["start", "both", "single"])
@pytest.mark.parametrize("strength", [0.15, 0.5])
def test_the_first_frame_equals_the_reference(
    wan: WanPipeline, references: ReferenceImages, solver: str, mode: str, strength: float
) -> None:
    """As near as the VAE allows."""
    job = video_job(reference_mode=mode, solver=solver, denoise_strength=strength, steps=3)
    _, frames = run_stages(wan, job, references)
    expected = round_trip(wan, job, references.start)
    assert torch.allclose(frames[0], expected, atol=1e-4)
    assert not torch.allclose(frames[-1], expected, atol=1e-2)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("mode", ["end", "both"])
def test_the_last_latent_frame_is_that_of_a_still_clip_of_the_reference(
    wan: WanPipeline, references: ReferenceImages, solver: str, mode: str
) -> None:
    """The last frame itself also depends on the latent frames before."""
    job = video_job(reference_mode=mode, solver=solver, frames=8, steps=3)
    latents, _ = run_stages(wan, job, references)
    assert references.end is not None
    with torch.no_grad():
        still = VideoVAE(wan.components.pipe.vae).encode(image_tensor(references.end, 32, 32), frames=9)
    assert torch.allclose(latents[:, :, -1], still[:, :, -1], atol=1e-4)


@pytest.mark.parametrize("mode", ["start", "end", "both", "single"])
def test_a_reference_also_changes_the_frames_that_are_not_fixed(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """The model continues the fixed frames; otherwise the clip would have a cut."""
    plain, _ = run_stages(wan, video_job(frames=9), references)
    conditioned, _ = run_stages(wan, video_job(frames=9, reference_mode=mode), references)
    assert (plain - conditioned)[:, :, 1].abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["start", "end", "both", "single"])
def test_at_full_strength_the_references_have_no_effect(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """The clip is that of the prompt alone."""
    clip = clip_levels(wan, video_job(reference_mode=mode, denoise_strength=1.0), references=references)
    assert difference(clip, clip_levels(wan, video_job())) <= MAX_DIFFERENCE


@pytest.mark.parametrize("mode", ["start", "single"])
def test_above_a_strength_of_one_half_the_first_frame_is_released(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """In the last steps the model may change it."""
    job = video_job(reference_mode=mode, denoise_strength=0.8, steps=5)
    _, frames = run_stages(wan, job, references)
    assert not torch.allclose(frames[0], round_trip(wan, job, references.start), atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"frames": 5, "denoise_strength": 0.15}, 7),
        ({"frames": 5, "denoise_strength": 1.0}, 10),
        ({"frames": 1, "denoise_strength": 0.0}, 1),
        ({"frames": 1, "denoise_strength": 0.15}, 1),
        ({"frames": 1, "denoise_strength": 0.5}, 5),
    ],
)
def test_sdedit_runs_a_part_of_the_steps_and_reports_it(
    wan: WanPipeline, references: ReferenceImages, changes: dict[str, float], steps: int
) -> None:
    """The callback has both numbers."""
    job = video_job(reference_mode="single", steps=10, guidance_scale=1.0, **changes)
    reported: list[tuple[int, int]] = []
    with batch_sizes(wan.components.pipe.transformer) as sizes:
        result = wan.generate(
            job, references=references, on_step=lambda done, total: reported.append((done, total))
        )
    assert len(sizes) == steps
    assert reported[-1] == (steps, steps)
    assert (result.asset_metadata["steps"], result.asset_metadata["effective_steps"]) == (10, steps)


@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
def test_a_single_frame_moves_away_from_its_reference_with_the_strength(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """From the reference itself to what the prompt alone generates."""
    distances = []
    for strength in (0.0, 0.15, 0.5, 0.8):
        job = video_job(frames=1, reference_mode=mode, denoise_strength=strength, steps=10)
        expected = round_trip(wan, job, references.end if mode == "end" else references.start)
        _, frames = run_stages(wan, job, references)
        distances.append(float((frames - expected).abs().mean()))
    assert distances[0] < 0.01
    assert distances == sorted(distances)


def test_references_do_not_affect_the_next_job(wan: WanPipeline, references: ReferenceImages) -> None:
    """Another user's image must never be visible in it."""
    expected = clip_levels(wan, video_job())
    clip_levels(wan, video_job(reference_mode="both", solver="dpm++", shift=9.0), references=references)
    assert difference(expected, clip_levels(wan, video_job())) <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("frames", "mode", "backend", "pipeline"),
    [
        (5, "start", "latent_replacement", "image_to_video"),
        (5, "single", "sdedit", "image_to_video"),
        (1, "both", "sdedit", "img2img"),
    ],
)
def test_the_metadata_describes_how_references_were_used(
    wan: WanPipeline, references: ReferenceImages, frames: int, mode: str, backend: str, pipeline: str
) -> None:
    """Operators compare methods by these fields, and callers see the effect of the strength."""
    job = video_job(frames=frames, reference_mode=mode, denoise_strength=0.4, negative_prompt="fog")
    result = wan.generate(job, references=references, on_step=no_progress)
    assert result.metadata["reference_backend"] == backend
    expected = {
        "denoise_strength": 0.4,
        "pipeline": pipeline,
        "resize_policy": "center_crop",
        "negative_prompt_used": True,
    }
    assert {name: result.asset_metadata[name] for name in expected} == expected


def test_with_bfloat16_the_vae_runs_in_float32(
    wan_checkpoint: Checkpoint, references: ReferenceImages
) -> None:
    """So a reference is reproduced exactly."""
    half = WanPipeline(wan_checkpoint, dtype=torch.bfloat16)
    half.load()
    assert half.components.pipe.transformer.patch_embedding.weight.dtype == torch.bfloat16
    assert half.components.pipe.vae.dtype == torch.float32
    job = video_job(reference_mode="start", steps=1)
    _, frames = run_stages(half, job, references)
    assert torch.allclose(frames[0], round_trip(half, job, references.start), atol=1e-4)
