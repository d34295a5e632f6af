from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import PreviewRenderer
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.previews import fit_previewer
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.sdxl.vae import ImageVAE

MakeJob = Callable[..., ImageJob]


class Averaging:
    """A codec whose latents are known: a mix of the mean colours of 8 by 8 pixels, and one idle channel."""

    mix = torch.tensor([[0.5, -1.0, 0.2], [1.0, 0.3, -0.4], [-0.2, 0.8, 2.0], [0.0, 0.0, 0.0]])

    def encode(self, image: Image.Image) -> torch.Tensor:
        small = np.asarray(image.reduce(8), dtype=np.float32) / 127.5 - 1
        return (torch.from_numpy(small) @ self.mix.T).permute(2, 0, 1)[None]


def test_colours_are_learned_from_the_vae() -> None:
    """Whatever its latents mean, a preview has the colours of the picture."""
    colours = fit_previewer(Averaging())
    picture = Image.new("RGB", (64, 64), (200, 30, 90))
    picture.paste((10, 220, 60), (0, 0, 32, 64))
    seen = colours.render(Averaging().encode(picture)[0])
    assert seen.size == (128, 128)
    assert np.abs(np.asarray(seen.getpixel((16, 64))) - (10, 220, 60)).max() < 8
    assert np.abs(np.asarray(seen.getpixel((112, 64))) - (200, 30, 90)).max() < 8


def test_a_preview_keeps_the_aspect() -> None:
    """Followers see the picture before it is there, not a square."""
    colours = fit_previewer(Averaging())
    assert colours.render(torch.zeros(4, 4, 8)).size == (128, 64)
    assert colours.render(torch.zeros(4, 200, 100)).size == (64, 128)


@pytest.mark.parametrize("count", [1, 3])
def test_every_step_but_the_last_can_be_looked_at(sdxl: SDXLPipeline, image_job: MakeJob, count: int) -> None:
    """After the last one the picture itself is on its way."""
    order: list[object] = []
    sdxl.generate(
        image_job(steps=3, num_images=count, height=128),
        on_step=lambda done, total: order.append(done),
        on_preview=lambda take: order.append(take()().size),
    )
    assert order == [0, (64, 128), 1, (64, 128), 2, 3]


def test_a_look_shows_the_step_it_was_taken_after(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """It is drawn later, by another thread, while the latents go on."""
    looks: list[PreviewRenderer] = []
    at_once: list[bytes] = []

    def on_preview(take: Callable[[], PreviewRenderer]) -> None:
        looks.append(take())
        at_once.append(looks[-1]().tobytes())

    sdxl.generate(image_job(steps=4), on_step=lambda *_: None, on_preview=on_preview)
    assert [look().tobytes() for look in looks] == at_once
    assert len(set(at_once)) == 3


def test_a_job_with_previews_learns_nothing(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Between two steps there is no time for it: the colours are learned with the loading."""
    with encoding(sdxl) as encoded:
        sdxl.generate(image_job(steps=3), on_step=lambda *_: None, on_preview=lambda take: take()() and None)
    assert encoded == []


def test_colours_are_not_learned_where_nobody_may_look(tiny: Checkpoint, image_job: MakeJob) -> None:
    """A preview that is not wanted costs nothing."""
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(previews=False))
    sdxl.load()
    assert sdxl._model.previewer is None
    sdxl.generate(image_job(), on_step=lambda *_: None, on_preview=lambda take: pytest.fail("offered"))


def test_a_vae_whose_colours_cannot_be_learned_is_asked_once(
    tiny: Checkpoint, image_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run without previews, and none of them tries again."""
    asked: list[int] = []

    def encode(*_: object) -> torch.Tensor:
        asked.append(1)
        raise RuntimeError("no colours")

    monkeypatch.setattr(ImageVAE, "encode", encode)
    sdxl = SDXLPipeline(tiny)
    for _ in range(2):
        made = sdxl.generate(
            image_job(), on_step=lambda *_: None, on_preview=lambda take: pytest.fail("offered")
        )
        assert len(made.images) == 1
    assert len(asked) == 1


@contextmanager
def encoding(sdxl: SDXLPipeline) -> Iterator[list[int]]:
    """How often the VAE's encoder ran."""
    encoded: list[int] = []
    hook = sdxl._pipe.vae.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    try:
        yield encoded
    finally:
        hook.remove()
