"""Previews of unfinished SDXL images, without the VAE's decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.pipelines.base import PreviewRenderer, Snapshot
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.previews import fit_previewer
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.sdxl.vae import ImageVAE
from tests.factories import image_job
from tests.pipelines.helpers import batch_sizes, no_progress


class LinearEncoder:
    """An encoder with known latents: linear combinations of the mean RGB of 8x8 pixels, and a channel that is
    always 0."""

    weights = torch.tensor([[0.5, -1.0, 0.2], [1.0, 0.3, -0.4], [-0.2, 0.8, 2.0], [0.0, 0.0, 0.0]])

    def encode(self, image: Image.Image) -> torch.Tensor:
        small = np.asarray(image.reduce(8), dtype=np.float32) / 127.5 - 1
        return (torch.from_numpy(small) @ self.weights.T).permute(2, 0, 1)[None]


def test_a_fitted_previewer_reproduces_the_image() -> None:
    """For any linear encoder."""
    image = Image.new("RGB", (64, 64), (200, 30, 90))
    image.paste((10, 220, 60), (0, 0, 32, 64))
    preview = fit_previewer(LinearEncoder()).render(LinearEncoder().encode(image)[0])
    assert preview.size == (128, 128)
    assert np.abs(np.asarray(preview.getpixel((16, 64))) - (10, 220, 60)).max() < 8
    assert np.abs(np.asarray(preview.getpixel((112, 64))) - (200, 30, 90)).max() < 8


def test_a_preview_keeps_the_aspect_ratio() -> None:
    """Its longest edge has 128 px."""
    previewer = fit_previewer(LinearEncoder())
    assert previewer.render(torch.zeros(4, 4, 8)).size == (128, 64)
    assert previewer.render(torch.zeros(4, 200, 100)).size == (64, 128)


@pytest.mark.parametrize("count", [1, 3])
def test_a_preview_is_offered_after_every_step_but_the_last(sdxl: SDXLPipeline, count: int) -> None:
    """After the last step the image itself follows."""
    order: list[object] = []
    sdxl.generate(
        image_job(steps=3, num_images=count, height=128),
        on_step=lambda done, total: order.append(done),
        on_preview=lambda snapshot: order.append(snapshot()().size),
    )
    assert order == [0, (64, 128), 1, (64, 128), 2, 3]


def test_a_preview_shows_the_step_of_its_snapshot(sdxl: SDXLPipeline) -> None:
    """It is rendered later, on another thread, while denoising continues."""
    renderers: list[PreviewRenderer] = []
    rendered_at_once: list[bytes] = []

    def on_preview(snapshot: Snapshot) -> None:
        renderers.append(snapshot())
        rendered_at_once.append(renderers[-1]().tobytes())

    sdxl.generate(image_job(steps=4), on_step=no_progress, on_preview=on_preview)
    assert [render().tobytes() for render in renderers] == rendered_at_once
    assert len(set(rendered_at_once)) == 3


def test_the_previewer_is_fitted_when_the_checkpoint_is_loaded(sdxl: SDXLPipeline) -> None:
    """A job does not wait for it."""
    with batch_sizes(sdxl._pipe.vae.encoder) as encoded:
        sdxl.generate(
            image_job(steps=3), on_step=no_progress, on_preview=lambda snapshot: snapshot()() and None
        )
    assert encoded == []


def test_without_previews_nothing_is_fitted_or_offered(sdxl_checkpoint: Checkpoint) -> None:
    """They cost nothing if they are switched off."""
    sdxl = SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(previews=False))
    sdxl.load()
    assert sdxl._model.previewer is None
    sdxl.generate(image_job(), on_step=no_progress, on_preview=lambda _: pytest.fail("offered"))


def test_a_failed_fit_switches_previews_off(
    sdxl_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run without previews, and the fit is not repeated."""
    calls: list[int] = []

    def encode(*_: object) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("no latents")

    monkeypatch.setattr(ImageVAE, "encode", encode)
    sdxl = SDXLPipeline(sdxl_checkpoint)
    for _ in range(2):
        result = sdxl.generate(image_job(), on_step=no_progress, on_preview=lambda _: pytest.fail("offered"))
        assert len(result.images) == 1
    assert len(calls) == 1
