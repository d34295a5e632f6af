"""SDXL jobs with a reference image: modifications and exact copies."""

from __future__ import annotations

from shutil import copytree
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import Cancelled, I2IPipelineError, InvalidParameters, OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    batch_sizes,
    difference,
    image_levels,
    no_progress,
    raising,
)


@pytest.fixture(scope="module")
def landscape() -> Image.Image:
    """A wide image, 120x60 px: gradients, and a blue rectangle in the middle."""
    rows, columns = np.mgrid[0:60, 0:120]
    pixels = np.stack([rows * 4, columns * 2, 255 - rows * 3], axis=-1).astype(np.uint8)
    pixels[20:40, 40:80] = (20, 60, 200)
    return Image.fromarray(pixels)


def modification(**changes: Any) -> ImageJob:
    """A job that modifies its reference."""
    return image_job(**({"reference": "u/p.png", "denoise_strength": 0.5, "steps": 4} | changes))


def exact_copy(strength: float, **changes: Any) -> ImageJob:
    """An exact copy as job parsing builds it."""
    fixed = {"prompt": "", "exact_copy_mode": True, "reference": "u/p.png", "guidance_scale": 1.0}
    steps = {"denoise_strength": strength, "steps": round(6 + 4 * strength / 0.05)}
    return image_job(**(fixed | steps | changes))


def generate(sdxl: SDXLPipeline, job: ImageJob, reference: Image.Image) -> GeneratedImages:
    return sdxl.generate(job, reference=reference, on_step=no_progress)


@pytest.mark.parametrize(
    ("steps", "strength", "effective"),
    [(10, 0.5, 5), (25, 0.15, 3), (4, 0.15, 1), (3, 0.0, 1), (2, 1.0, 2)],
)
def test_a_modification_runs_steps_times_strength_steps(
    sdxl: SDXLPipeline, landscape: Image.Image, steps: int, strength: float, effective: int
) -> None:
    """At least one step runs; both numbers are reported."""
    job = modification(steps=steps, denoise_strength=strength)
    with batch_sizes(sdxl._pipe.unet) as sizes:
        metadata = generate(sdxl, job, landscape).asset_metadata
    assert sizes == [2] * effective
    reported = (metadata["steps"], metadata["effective_steps"], metadata["denoise_strength"])
    assert reported == (steps, effective, strength)


@pytest.mark.parametrize(("strength", "steps"), [(0.05, 10), (0.025, 8), (0.001, 6)])
def test_an_exact_copy_runs_all_its_steps(
    sdxl: SDXLPipeline, landscape: Image.Image, strength: float, steps: int
) -> None:
    """One UNet pass per step, without guidance."""
    with batch_sizes(sdxl._pipe.unet) as sizes:
        metadata = generate(sdxl, exact_copy(strength), landscape).asset_metadata
    assert sizes == [1] * steps
    assert metadata["effective_steps"] == steps
    assert metadata["guidance_scale"] == 1.0
    assert metadata["negative_prompt_used"] is False


def test_an_exact_copy_of_strength_0_is_the_resized_reference(
    sdxl: SDXLPipeline, landscape: Image.Image
) -> None:
    """Neither the UNet nor the VAE runs."""
    with batch_sizes(sdxl._pipe.unet) as sizes, batch_sizes(sdxl._pipe.vae.decoder) as decoded:
        result = generate(sdxl, exact_copy(0.0, num_images=3), landscape)
    expected = landscape.crop((30, 0, 90, 60)).resize((64, 64), Image.Resampling.LANCZOS)
    assert sizes == decoded == []
    assert [difference(image, expected) <= 1 for image in result.images] == [True] * 3
    assert (result.seeds, result.asset_metadata["effective_steps"]) == ([7, 8, 9], 0)
    assert result.batch_size == 3


def test_an_exact_copy_of_a_tiny_strength_is_a_copy(sdxl: SDXLPipeline, landscape: Image.Image) -> None:
    """A strength that is 0 in float32 must not become a division by zero, and so a black image."""
    one, other = (image_levels(sdxl, exact_copy(strength), landscape) for strength in (1e-9, 5e-324))
    assert difference(one, other) <= 1


def test_the_centre_of_the_reference_is_used(sdxl: SDXLPipeline, landscape: Image.Image) -> None:
    """A wide reference is cropped, not distorted: what lies outside the centre has no effect."""
    changed = landscape.copy()
    changed.paste((255, 0, 0), (0, 0, 20, 60))
    changed.paste((255, 0, 0), (100, 0, 120, 60))
    one, other = (generate(sdxl, modification(), reference) for reference in (landscape, changed))
    assert difference(one.images[0], other.images[0]) <= MAX_DIFFERENCE
    assert one.asset_metadata["resize_policy"] == "center_crop"


def test_reference_and_parameters_change_the_image(sdxl: SDXLPipeline, landscape: Image.Image) -> None:
    """Otherwise one of them would be ignored."""
    default = image_levels(sdxl, modification(), landscape)
    assert difference(default, image_levels(sdxl, modification(), landscape.rotate(180))) > MAX_DIFFERENCE
    for changes in ({"prompt": "a blue square"}, {"seed": 8}, {"denoise_strength": 0.9}, {"steps": 8}):
        changed = image_levels(sdxl, modification(**changes), landscape)
        assert difference(default, changed) > MAX_DIFFERENCE, changes


@pytest.mark.parametrize("count", [3, 6])
def test_each_image_of_a_batch_equals_the_single_image_of_its_seed(
    sdxl: SDXLPipeline, landscape: Image.Image, count: int
) -> None:
    """Callers pick one image of a batch and request it again by its seed."""
    batch = image_levels(sdxl, modification(num_images=count), landscape)
    singles = [image_levels(sdxl, modification(seed=7 + k), landscape)[0] for k in range(count)]
    assert difference(batch, np.stack(singles)) <= MAX_DIFFERENCE


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_cancelled_job_stops_before_the_next_step(
    sdxl: SDXLPipeline, landscape: Image.Image, stop_at: int
) -> None:
    """It ends as cancelled: an image-to-image error would make the workflow fall back to the prompt."""

    def on_step(done: int, _: int) -> None:
        if done == stop_at:
            raise Cancelled("enough")

    with batch_sizes(sdxl._pipe.unet) as sizes, pytest.raises(Cancelled):
        sdxl.generate(modification(), reference=landscape, on_step=on_step)
    assert len(sizes) == stop_at


class UnknownError(Exception):
    """An exception that the pipeline does not know."""


def test_any_exception_of_on_step_is_raised_unchanged(sdxl: SDXLPipeline, landscape: Image.Image) -> None:
    """An attempt whose lease is lost must end as such, though the pipeline knows nothing of leases."""

    def on_step(done: int, total: int) -> None:
        raise UnknownError

    with pytest.raises(UnknownError):
        sdxl.generate(modification(), reference=landscape, on_step=on_step)


def test_the_size_cap_applies_with_a_reference(sdxl_checkpoint: Checkpoint, landscape: Image.Image) -> None:
    """The tiny profile renders a production request small, keeps its aspect ratio and reports that."""
    sdxl = SDXLPipeline(sdxl_checkpoint, cap=64)
    result = generate(sdxl, modification(width=1024, height=512), landscape)
    assert result.images[0].size == (64, 32)
    assert result.metadata["size_capped"] is True


def test_a_second_order_scheduler_starts_at_a_whole_step(
    sdxl_checkpoint: Checkpoint, landscape: Image.Image
) -> None:
    """Its timesteps come in pairs."""
    sdxl = SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(scheduler="heun"))
    reported: list[tuple[int, int]] = []
    sdxl.generate(
        modification(), reference=landscape, on_step=lambda done, total: reported.append((done, total))
    )
    assert reported == [(done, 3) for done in range(4)]


def test_a_failing_pass_raises_i2i_pipeline_error(sdxl: SDXLPipeline, landscape: Image.Image) -> None:
    """The workflow falls back to the prompt on this error alone. The pipeline stays usable."""
    with (
        raising(sdxl._pipe.vae.encoder, RuntimeError("shapes do not match")),
        pytest.raises(I2IPipelineError) as raised,
    ):
        generate(sdxl, modification(), landscape)
    assert "shapes" not in raised.value.message
    assert raised.value.__context__ is None, "the first error's traceback would keep its tensors alive"
    assert generate(sdxl, modification(), landscape)


def test_out_of_memory_is_no_i2i_pipeline_error(sdxl: SDXLPipeline, landscape: Image.Image) -> None:
    """All OOM fallbacks are tried; after that another attempt may have more memory."""
    error = torch.OutOfMemoryError("CUDA out of memory")
    with raising(sdxl._pipe.vae.encoder, error), pytest.raises(OutOfMemory):
        generate(sdxl, modification(), landscape)


def test_a_reference_must_be_given_exactly_when_the_job_names_one(
    sdxl: SDXLPipeline, landscape: Image.Image
) -> None:
    """Ignoring a reference would deliver an image that only looks like a result."""
    with pytest.raises(InvalidParameters, match="reference"):
        generate(sdxl, image_job(), landscape)
    with pytest.raises(InvalidParameters, match="reference"):
        sdxl.generate(modification(), on_step=no_progress)


def test_the_metadata_describes_how_the_reference_was_used(
    sdxl: SDXLPipeline, landscape: Image.Image
) -> None:
    """Callbacks are built from these fields; jobs without a reference have none of them."""
    result = generate(sdxl, modification(negative_prompt="fog"), landscape)
    assert result.metadata["reference_backend"] == "img2img"
    assert result.asset_metadata == {
        "steps": 4,
        "effective_steps": 2,
        "guidance_scale": 6.0,
        "denoise_strength": 0.5,
        "pipeline": "img2img",
        "resize_policy": "center_crop",
        "negative_prompt_used": True,
    }
    plain = sdxl.generate(image_job(), on_step=no_progress)
    assert "reference_backend" not in plain.metadata
    assert not {"denoise_strength", "pipeline", "resize_policy"} & set(plain.asset_metadata)


@pytest.fixture(scope="module")
def guidance_distilled(sdxl_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> SDXLPipeline:
    """A pipeline whose UNet takes the guidance scale as an input."""
    folder = tmp_path_factory.mktemp("distilled") / "checkpoint"
    copytree(sdxl_checkpoint.path, folder)
    config = diffusers.UNet2DConditionModel.load_config(sdxl_checkpoint.path / "unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = diffusers.UNet2DConditionModel.from_config(config, time_cond_proj_dim=16)
    unet.save_pretrained(folder / "unet")
    return SDXLPipeline(Checkpoint(folder, "folder"), cap=128)


def test_a_negative_prompt_that_no_model_read_is_not_reported_as_used(
    guidance_distilled: SDXLPipeline, sdxl: SDXLPipeline, landscape: Image.Image
) -> None:
    """A UNet that takes the guidance scale as an input never receives the negative prompt."""
    job = modification(negative_prompt="fog", guidance_scale=6.0)
    guidance_distilled.load()
    with batch_sizes(guidance_distilled._pipe.unet) as sizes:
        result = generate(guidance_distilled, job, landscape)
    assert sizes == [1, 1]
    assert result.asset_metadata["guidance_scale"] == 6.0
    assert (result.asset_metadata["negative_prompt_used"], result.negative_prompt_used) == (False, False)
    assert generate(sdxl, job, landscape).asset_metadata["negative_prompt_used"] is True


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m_karras", "euler_a", "lcm"])
def test_an_exact_copy_works_with_every_selected_scheduler(
    sdxl_checkpoint: Checkpoint, landscape: Image.Image, scheduler: str
) -> None:
    """A copy always uses Euler; arguments for the selected scheduler's steps must not reach it."""
    sdxl = SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(scheduler=scheduler))
    sdxl.load()
    with batch_sizes(sdxl._pipe.unet) as sizes:
        generate(sdxl, exact_copy(0.001), landscape)
    assert sizes == [1] * 6
