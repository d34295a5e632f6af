"""Clips of a length that the model does not make: what is cut off is not what the caller asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.wan.pipeline import WanPipeline
from training.scenes import Pixels, random_clip, render_clip
from training.wan.evaluate import held_out_captions, video_job

CLIPS = 6
STEPS = 8


@pytest.mark.parametrize("frames", [6, 7])
@pytest.mark.parametrize("mode", ["end", "both"])
def test_a_clip_that_lost_frames_still_ends_on_its_reference(
    wan: WanPipeline, decibels: Callable[[Pixels, Pixels], float], mode: str, frames: int
) -> None:
    """Of nine frames that are made two or three are cut off, as of the usual 83; its last frame comes 3 dB
    nearer to the picture, as that of a clip that loses none."""
    gains = []
    for k, (_, prompt) in enumerate(held_out_captions(CLIPS, seed=7)):
        other = render_clip(random_clip(np.random.default_rng((7, 61, k)), held_out=False), 2)
        references = ReferenceImages(start=Image.fromarray(other[0]), end=Image.fromarray(other[-1]))
        last = {}
        for requested in ("none", mode):
            job = video_job(prompt, seed=k, reference_mode=requested, frames=frames, steps=STEPS)
            made = wan.generate(job, references=references, on_step=lambda *_: None).frames
            assert len(made) == frames
            last[requested] = np.asarray(made[-1])
        gains.append(decibels(last[mode], other[-1]) - decibels(last["none"], other[-1]))
    assert np.mean(gains) >= 3
