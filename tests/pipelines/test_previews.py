from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.previews import LatentColours
from ourvidz.pipelines.sdxl import SDXLPipeline

MakeJob = Callable[..., ImageJob]


class Averaging:
    """A codec whose latents are known: a mix of the mean colours of 8 by 8 pixels, and one idle channel."""

    mix = torch.tensor([[0.5, -1.0, 0.2], [1.0, 0.3, -0.4], [-0.2, 0.8, 2.0], [0.0, 0.0, 0.0]])

    def encode(self, image: Image.Image) -> torch.Tensor:
        small = np.asarray(image.reduce(8), dtype=np.float32) / 127.5 - 1
        return (torch.from_numpy(small) @ self.mix.T).permute(2, 0, 1)[None]


def test_colours_are_learned_from_the_vae() -> None:
    """Whatever its latents mean, a preview has the colours of the picture."""
    colours = LatentColours(Averaging())
    picture = Image.new("RGB", (64, 64), (200, 30, 90))
    picture.paste((10, 220, 60), (0, 0, 32, 64))
    seen = colours.picture(Averaging().encode(picture)[0])
    assert seen.size == (128, 128)
    assert np.abs(np.asarray(seen.getpixel((16, 64))) - (10, 220, 60)).max() < 8
    assert np.abs(np.asarray(seen.getpixel((112, 64))) - (200, 30, 90)).max() < 8


def test_a_preview_keeps_the_aspect() -> None:
    """Followers see the picture before it is there, not a square."""
    colours = LatentColours(Averaging())
    assert colours.picture(torch.zeros(4, 4, 8)).size == (128, 64)
    assert colours.picture(torch.zeros(4, 200, 100)).size == (64, 128)


@pytest.mark.parametrize("count", [1, 3])
def test_every_step_but_the_last_can_be_looked_at(sdxl: SDXLPipeline, image_job: MakeJob, count: int) -> None:
    """After the last one the picture itself is on its way."""
    order: list[object] = []
    sdxl.generate(
        image_job(steps=3, num_images=count, height=128),
        on_step=lambda done, total: order.append(done),
        on_preview=lambda look: order.append(look().size),
    )
    assert order == [0, (64, 128), 1, (64, 128), 2, 3]


def test_nobody_looks_unless_asked(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """A preview that is not wanted costs nothing, not even learning the colours."""
    encoded: list[int] = []
    hook = sdxl._pipe.vae.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    try:
        sdxl.generate(image_job(steps=3), on_step=lambda *_: None, on_preview=lambda look: None)
    finally:
        hook.remove()
    assert encoded == []
