"""Checkpoints that were trained to begin with a picture, and to end on a second."""

from __future__ import annotations

from collections.abc import Callable
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
from training.untrained.wan_image_models import build_image_to_video

MakeJob = Callable[..., VideoJob]
PX = 32


@pytest.fixture(scope="module")
def begins(tmp_path_factory: pytest.TempPathFactory) -> WanPipeline:
    """A checkpoint that takes the first frame."""
    return _built(tmp_path_factory.mktemp("i2v") / "tiny-i2v", 1)


@pytest.fixture(scope="module")
def ends_too(tmp_path_factory: pytest.TempPathFactory) -> WanPipeline:
    """A checkpoint that takes the first frame and the last."""
    return _built(tmp_path_factory.mktemp("flf2v") / "tiny-flf2v", 2)


def _built(folder: Path, pictures: int) -> WanPipeline:
    build_image_to_video(folder, images=pictures)
    return WanPipeline(find_wan(folder))


def blots(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((PX, PX), Image.Resampling.BICUBIC)


START, END = blots(1), blots(2)


def clip(wan: WanPipeline, job: VideoJob, references: ReferenceImages) -> np.ndarray:
    made = wan.generate(job, references=references, on_step=lambda *_: None)
    assert made.metadata["reference_backend"] == "image_to_video"
    return np.stack([np.asarray(frame) for frame in made.frames]).astype(int)


@pytest.mark.parametrize("pictures", [1, 2])
def test_the_clip_is_the_one_that_diffusers_makes(
    begins: WanPipeline, ends_too: WanPipeline, pictures: int
) -> None:
    """The same weights, pictures and seed mean the same clip in the library that the weights come with."""
    wan, mode = ((begins, "start"), (ends_too, "both"))[pictures - 1]
    job = video_job(reference_mode=mode, frames=9, steps=3, guidance_scale=4.0, width=PX, height=PX)
    ours = clip(wan, job, ReferenceImages(start=START, end=END))
    side = wan.components.pipe.image_encoder.config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    parts = {name: part for name, part in wan.components.pipe.components.items() if part is not None}
    theirs = diffusers.WanImageToVideoPipeline(**parts, image_processor=processor)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.UniPCMultistepScheduler.from_config(theirs.scheduler.config, flow_shift=5.0)
    words = wan.encode(job)
    expected = theirs(
        image=START,
        last_image=END if pictures == 2 else None,
        prompt_embeds=words.prompt,
        negative_prompt_embeds=words.negative,
        width=PX,
        height=PX,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    assert np.abs(ours - np.round(expected * 255)).max() <= 1


def test_the_pictures_are_heard(begins: WanPipeline, ends_too: WanPipeline) -> None:
    """Another picture makes another clip, the last one too."""
    start = video_job(reference_mode="start")
    one, other = (clip(begins, start, ReferenceImages(start=picture)) for picture in (START, END))
    assert np.abs(one - other).max() > 2
    both = video_job(reference_mode="both")
    one, other = (clip(ends_too, both, ReferenceImages(start=START, end=picture)) for picture in (START, END))
    assert np.abs(one - other).max() > 2


@pytest.mark.parametrize("mode", ["none", "single", "end"])
def test_a_mode_that_the_checkpoint_does_not_know_is_refused(begins: WanPipeline, mode: str) -> None:
    """It cannot do without its picture."""
    pictures = ReferenceImages(single=START, end=END)
    with pytest.raises(InvalidParameters, match="of the mode start alone") as refused:
        begins.generate(video_job(reference_mode=mode), references=pictures, on_step=lambda *_: None)
    assert (refused.value.field, refused.value.value) == ("reference_mode", mode)


def test_the_image_encoder_is_loaded_counted_and_offloaded(begins: WanPipeline) -> None:
    """It stays in single precision, and waits in the host's memory like every other part."""
    halved = WanPipeline(begins.checkpoint, dtype=torch.bfloat16, placement=Placement(offload=True))
    made = clip(halved, video_job(reference_mode="start"), ReferenceImages(start=START))
    assert made.shape == (5, PX, PX, 3)
    assert halved.components.pipe.image_encoder.dtype == torch.float32
    assert halved.components.pipe.transformer.patch_embedding.weight.dtype == torch.bfloat16
    assert halved.info()["model"] == "i2v"
