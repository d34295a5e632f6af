"""Checkpoints that were trained with a first frame, or with first and last frame, as input."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.placement import Placement
from tests.factories import video_job
from tests.pipelines.helpers import MAX_DIFFERENCE, Pixels, difference, levels, no_progress
from training.untrained.wan_image_models import build_image_to_video

pytestmark = pytest.mark.model

SIDE_PX = 32


@pytest.fixture(scope="module")
def first_frame(tmp_path_factory: pytest.TempPathFactory) -> WanPipeline:
    """An image-to-video checkpoint with random weights."""
    return _build(tmp_path_factory.mktemp("i2v") / "tiny-i2v", 1)


@pytest.fixture(scope="module")
def first_and_last_frame(tmp_path_factory: pytest.TempPathFactory) -> WanPipeline:
    """A first-and-last-frame checkpoint with random weights."""
    return _build(tmp_path_factory.mktemp("flf2v") / "tiny-flf2v", 2)


def _build(folder: Path, images: int) -> WanPipeline:
    build_image_to_video(folder, images=images)
    return WanPipeline(find_wan(folder))


def random_image(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)


START, END = random_image(1), random_image(2)


def generate(wan: WanPipeline, job: VideoJob, references: ReferenceImages) -> Pixels:
    result = wan.generate(job, references=references, on_step=no_progress)
    assert result.metadata["reference_backend"] == "image_to_video"
    return levels(result.frames)


@pytest.mark.parametrize("images", [1, 2])
def test_a_clip_equals_the_one_that_diffusers_generates(
    first_frame: WanPipeline, first_and_last_frame: WanPipeline, images: int
) -> None:
    """With the same weights, images and seed."""
    wan, mode = ((first_frame, "start"), (first_and_last_frame, "both"))[images - 1]
    job = video_job(reference_mode=mode, frames=9, steps=3, guidance_scale=4.0, width=SIDE_PX, height=SIDE_PX)
    clip = generate(wan, job, ReferenceImages(start=START, end=END))
    pipe = wan.components.pipe
    side = pipe.image_encoder.config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    components = {name: component for name, component in pipe.components.items() if component is not None}
    expected_pipe = diffusers.WanImageToVideoPipeline(**components, image_processor=processor)
    expected_pipe.set_progress_bar_config(disable=True)
    expected_pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(
        expected_pipe.scheduler.config, flow_shift=5.0
    )
    embeds = wan.encode(job)
    expected = expected_pipe(
        image=START,
        last_image=END if images == 2 else None,
        prompt_embeds=embeds.prompt,
        negative_prompt_embeds=embeds.negative,
        width=SIDE_PX,
        height=SIDE_PX,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    assert difference(clip, np.round(expected * 255)) <= 1


def test_every_reference_changes_the_clip(
    first_frame: WanPipeline, first_and_last_frame: WanPipeline
) -> None:
    """The last one too."""
    start_job = video_job(reference_mode="start")
    one, other = (generate(first_frame, start_job, ReferenceImages(start=image)) for image in (START, END))
    assert difference(one, other) > MAX_DIFFERENCE
    both_job = video_job(reference_mode="both")
    one, other = (
        generate(first_and_last_frame, both_job, ReferenceImages(start=START, end=image))
        for image in (START, END)
    )
    assert difference(one, other) > MAX_DIFFERENCE


@pytest.mark.parametrize("mode", ["none", "single", "end"])
def test_other_reference_modes_are_refused(first_frame: WanPipeline, mode: str) -> None:
    """The model requires its image."""
    references = ReferenceImages(single=START, end=END)
    with pytest.raises(InvalidParameters, match="of the mode start alone") as refused:
        first_frame.generate(video_job(reference_mode=mode), references=references, on_step=no_progress)
    assert (refused.value.field, refused.value.value) == ("reference_mode", mode)


def test_the_image_encoder_is_offloaded_and_stays_in_float32(first_frame: WanPipeline) -> None:
    """Whatever the dtype of the transformer."""
    placement = Placement(offload=True)
    half = WanPipeline(first_frame.checkpoint, dtype=torch.bfloat16, placement=placement)
    clip = generate(half, video_job(reference_mode="start"), ReferenceImages(start=START))
    assert clip.shape == (5, SIDE_PX, SIDE_PX, 3)
    assert half.components.pipe.image_encoder.dtype == torch.float32
    assert half.components.pipe.transformer.patch_embedding.weight.dtype == torch.bfloat16
    assert half.info()["model"] == "i2v"
