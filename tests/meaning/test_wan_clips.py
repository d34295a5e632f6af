"""Clips of the trained tiny-wan show what their prompts describe, measured by their pixels."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from ourvidz.pipelines.wan.pipeline import WanPipeline
from training.recognition import RecognizedClip, recognize_clip
from training.scenes import Clip, random_clip, render_clip
from training.wan.evaluate import clip_frames, held_out_captions
from training.wan.vae import reconstruction_db, to_tensor

SEED = 7
CLIPS = 12

pytestmark = pytest.mark.timeout(600)

Shown = list[tuple[Clip, RecognizedClip]]


@pytest.fixture(scope="module")
def shown(wan: WanPipeline) -> Shown:
    """Clips of held-out combinations, and the recognized content of their videos."""
    return [
        (clip, recognize_clip([np.asarray(frame) for frame in clip_frames(wan, text, seed=2000 + k)]))
        for k, (clip, text) in enumerate(held_out_captions(CLIPS, seed=SEED))
    ]


@pytest.mark.parametrize(("name", "least"), [("background", 0.9), ("colour", 0.9), ("motion", 0.85)])
def test_a_clip_shows_the_colours_and_motion_of_its_caption(shown: Shown, name: str, least: float) -> None:
    """The captions have combinations of attributes that were not trained on."""
    assert np.mean([getattr(seen, name) == getattr(clip, name) for clip, seen in shown]) >= least


@pytest.mark.parametrize("name", ["background", "colour", "motion"])
def test_a_clip_does_not_show_the_content_of_another_caption(shown: Shown, name: str) -> None:
    """Compared with other captions, the score is at chance level."""
    clips = [clip for clip, _ in shown]
    others = [
        np.mean(
            [
                getattr(seen, name) == getattr(clip, name)
                for clip, (_, seen) in zip(turned, shown, strict=True)
            ]
        )
        for turned in (clips[k:] + clips[:k] for k in range(1, len(clips)))
    ]
    assert np.mean(others) <= 0.4


def test_the_direction_in_the_prompt_decides_the_motion(wan: WanPipeline) -> None:
    """Two prompts that differ in "left" and "right" only have opposite motions."""
    for word in ("right", "left"):
        frames = clip_frames(wan, f"a big red circle moving {word} on a white background", seed=3)
        assert recognize_clip([np.asarray(frame) for frame in frames]).motion == word


def test_the_vae_keeps_colours_and_motion(wan_folder: Path) -> None:
    """Reconstructions of rendered clips are recognized correctly."""
    vae = diffusers.AutoencoderKLWan.from_pretrained(wan_folder / "vae").float()
    assert reconstruction_db(vae, seed=SEED, count=6) >= 25
    for k in range(6):
        clip = random_clip(np.random.default_rng((SEED, 51, k)), held_out=True)
        with torch.no_grad():
            latents = vae.encode(to_tensor(render_clip(clip, 17)[None])).latent_dist.mode()
            decoded = vae.decode(latents).sample[0].permute(1, 2, 3, 0)
        seen = recognize_clip(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())
        assert (seen.background, seen.colour, seen.motion) == (clip.background, clip.colour, clip.motion)


def test_a_clip_of_83_frames_is_generated(wan: WanPipeline) -> None:
    """Existing callers request this length, for which the model generates 85 frames."""
    frames = clip_frames(
        wan, "a big red circle moving right on a white background", seed=5, frames=83, steps=4
    )
    assert len(frames) == 83
