"""Clips whose number of frames the model does not generate: surplus frames are removed."""

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
def test_a_clip_with_removed_frames_still_ends_with_its_reference(
    wan: WanPipeline, decibels: Callable[[Pixels, Pixels], float], mode: str, frames: int
) -> None:
    """The model generates nine frames, of which two or three are removed.

    The last delivered frame is 3 dB closer to the reference, as in clips without removed frames.
    """
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
