from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import PreviewRenderer
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE
from tests.factories import video_job

MakeJob = Callable[..., VideoJob]


@pytest.mark.parametrize("frames", [1, 9])
def test_every_step_but_the_last_can_be_looked_at(wan: WanPipeline, frames: int) -> None:
    """After the last one the clip itself is on its way."""
    order: list[object] = []
    wan.generate(
        video_job(steps=3, frames=frames, width=32, height=64),
        on_step=lambda done, total: order.append(done),
        on_preview=lambda take: order.append(take()().size),
    )
    assert order == [0, (64, 128), 1, (64, 128), 2, 3]


def test_a_look_shows_the_step_it_was_taken_after(wan: WanPipeline) -> None:
    """It is drawn later, by another thread, while the latents go on."""
    looks: list[PreviewRenderer] = []
    at_once: list[bytes] = []

    def on_preview(take: Callable[[], PreviewRenderer]) -> None:
        looks.append(take())
        at_once.append(looks[-1]().tobytes())

    wan.generate(video_job(steps=4), on_step=lambda *_: None, on_preview=on_preview)
    assert [look().tobytes() for look in looks] == at_once
    assert len(set(at_once)) == 3


def test_a_preview_shows_the_middle_frame_of_the_clip_to_come() -> None:
    """On the trained checkpoint, half-way: what a follower sees is what the clip will be, and no noise."""
    wan = WanPipeline(find_wan(None), cap=64)
    looks: list[PreviewRenderer] = []
    job = VideoJob(
        id="job-1",
        type="video_fast",
        user_id="user-1",
        expected_time=180,
        prompt="a red circle moves right over a green background",
        steps=12,
        guidance_scale=3.0,
        width=64,
        height=64,
        frames=17,
        seed=7,
    )
    made = wan.generate(job, on_step=lambda *_: None, on_preview=lambda take: looks.append(take()))

    def distance(look: PreviewRenderer, frame: Image.Image) -> float:
        seen = np.asarray(look().resize((8, 8), Image.Resampling.BOX)).astype(int)
        return float(np.abs(seen - np.asarray(frame.resize((8, 8), Image.Resampling.BOX))).mean())

    near = distance(looks[-1], made.frames[8])
    assert near < 20
    assert near < distance(looks[-1], made.frames[0])
    assert near < distance(looks[-1], made.frames[16])


def test_a_job_with_previews_learns_nothing(wan: WanPipeline) -> None:
    """Between two steps there is no time for it: the colours are learned with the loading."""
    encoded: list[int] = []
    hook = wan.components.pipe.vae.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    try:
        wan.generate(video_job(steps=3), on_step=lambda *_: None, on_preview=lambda take: take()() and None)
    finally:
        hook.remove()
    assert encoded == []


def test_colours_are_not_learned_where_nobody_may_look(wan_checkpoint: Checkpoint) -> None:
    """A preview that is not wanted costs nothing."""
    wan = WanPipeline(wan_checkpoint, options=WanOptions(previews=False))
    wan.load()
    assert wan._previewer is None
    wan.generate(video_job(), on_step=lambda *_: None, on_preview=lambda take: pytest.fail("offered"))


def test_a_vae_whose_colours_cannot_be_learned_is_of_use_without_them(
    wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run without previews, and none of them tries again."""
    asked: list[int] = []

    def encode(*_: object, **__: object) -> torch.Tensor:
        asked.append(1)
        raise RuntimeError("no colours")

    monkeypatch.setattr(VideoVAE, "encode", encode)
    wan = WanPipeline(wan_checkpoint)
    for _ in range(2):
        wan.generate(video_job(), on_step=lambda *_: None, on_preview=lambda take: pytest.fail("offered"))
    assert len(asked) == 1
