"""Previews of unfinished clips, without the VAE's decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.pipelines.base import PreviewRenderer, Snapshot
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE
from tests.factories import video_job
from tests.pipelines.helpers import batch_sizes, no_progress


@pytest.mark.parametrize("frames", [1, 9])
def test_a_preview_is_offered_after_every_step_but_the_last(wan: WanPipeline, frames: int) -> None:
    """After the last step the clip itself follows."""
    order: list[object] = []
    wan.generate(
        video_job(steps=3, frames=frames, width=32, height=64),
        on_step=lambda done, total: order.append(done),
        on_preview=lambda snapshot: order.append(snapshot()().size),
    )
    assert order == [0, (64, 128), 1, (64, 128), 2, 3]


def test_a_preview_shows_the_step_of_its_snapshot(wan: WanPipeline) -> None:
    """It is rendered later, on another thread, while denoising continues."""
    renderers: list[PreviewRenderer] = []
    rendered_at_once: list[bytes] = []

    def on_preview(snapshot: Snapshot) -> None:
        renderers.append(snapshot())
        rendered_at_once.append(renderers[-1]().tobytes())

    wan.generate(video_job(steps=4), on_step=no_progress, on_preview=on_preview)
    assert [render().tobytes() for render in renderers] == rendered_at_once
    assert len(set(rendered_at_once)) == 3


def test_a_preview_shows_the_estimated_middle_frame() -> None:
    """On the trained checkpoint: the last preview is nearer to the middle frame than to the first and the
    last one, and shows no noise."""
    wan = WanPipeline(find_wan(None), cap=64)
    renderers: list[PreviewRenderer] = []
    prompt = "a red circle moves right over a green background"
    job = video_job(prompt=prompt, steps=12, guidance_scale=3.0, width=64, height=64, frames=17)
    clip = wan.generate(job, on_step=no_progress, on_preview=lambda snapshot: renderers.append(snapshot()))
    preview = renderers[-1]().resize((8, 8), Image.Resampling.BOX)

    def distance(frame: Image.Image) -> float:
        small = np.asarray(frame.resize((8, 8), Image.Resampling.BOX)).astype(int)
        return float(np.abs(np.asarray(preview) - small).mean())

    assert distance(clip.frames[8]) < 20
    assert distance(clip.frames[8]) < distance(clip.frames[0])
    assert distance(clip.frames[8]) < distance(clip.frames[16])


def test_the_previewer_is_fitted_when_the_checkpoint_is_loaded(wan: WanPipeline) -> None:
    """A job does not wait for it."""
    with batch_sizes(wan.components.pipe.vae.encoder) as encoded:
        wan.generate(
            video_job(steps=3), on_step=no_progress, on_preview=lambda snapshot: snapshot()() and None
        )
    assert encoded == []


def test_without_previews_nothing_is_fitted_or_offered(wan_checkpoint: Checkpoint) -> None:
    """They cost nothing if they are switched off."""
    wan = WanPipeline(wan_checkpoint, options=WanOptions(previews=False))
    wan.load()
    assert wan._previewer is None
    wan.generate(video_job(), on_step=no_progress, on_preview=lambda _: pytest.fail("offered"))


def test_a_failed_fit_switches_previews_off(
    wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run without previews, and the fit is not repeated."""
    calls: list[int] = []

    def encode(*_: object, **__: object) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("no latents")

    monkeypatch.setattr(VideoVAE, "encode", encode)
    wan = WanPipeline(wan_checkpoint)
    for _ in range(2):
        wan.generate(video_job(), on_step=no_progress, on_preview=lambda _: pytest.fail("offered"))
    assert len(calls) == 1
