"""Effects of references on clips of the trained tiny-wan, measured by their pixels.

Prompts and references are unrelated, so only the reference can bring a clip closer to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor, to_images
from training.recognition import recognize_clip
from training.scenes import Pixels, random_clip, render_clip
from training.wan.evaluate import held_out_captions, video_job
from training.wan.models import NATIVE_PX

SEED = 7
CLIPS = 12
SWEPT = 3
"""Number of clips at every strength."""
STRENGTHS = (0.0, 0.4, 0.7, 1.0)
FIXED_STRENGTH = 0.4
"""A strength below one half, up to which frames are fixed in all steps."""
FRAMES = 5
STEPS = 8
SWEEP_STEPS = 25
"""The steps of the fast job types. With eight steps a frame that is released late differs more from the
reference than the clip of the prompt alone."""
TOLERANCE_DB = 0.25
"""Variation of the mean over three clips that contain nothing of their references."""

Decibels = Callable[[Pixels, Pixels], float]
Make = Callable[..., Pixels]
Clips = Callable[[str], list[Pixels]]


@dataclass(frozen=True)
class PromptCase:
    """A prompt and two unrelated reference images, which are frames of one other clip."""

    prompt: str
    seed: int
    first: Pixels
    last: Pixels

    @property
    def references(self) -> ReferenceImages:
        """All references; each mode uses those that it needs."""
        first, last = Image.fromarray(self.first), Image.fromarray(self.last)
        return ReferenceImages(single=first, start=first, end=last)


@pytest.fixture(scope="module")
def cases() -> list[PromptCase]:
    """Captions of held-out clips, with references from other clips."""
    made = []
    for k, (_, prompt) in enumerate(held_out_captions(CLIPS, seed=SEED)):
        other = render_clip(random_clip(np.random.default_rng((SEED, 61, k)), held_out=False), FRAMES)
        made.append(PromptCase(prompt, 3000 + k, other[0], other[-1]))
    return made


@pytest.fixture(scope="module")
def make(wan: WanPipeline) -> Make:
    """Generate one clip: (frames, rows, columns, 3)."""

    def clip(
        case: PromptCase, mode: str, *, steered_by: PromptCase | None = None, **changed: object
    ) -> Pixels:
        fields = {"frames": FRAMES, "steps": STEPS} | changed
        job = video_job(case.prompt, seed=case.seed, reference_mode=mode, **fields)
        made = wan.generate(job, references=(steered_by or case).references, on_step=lambda *_: None)
        return np.stack([np.asarray(frame) for frame in made.frames])

    return clip


@pytest.fixture(scope="module")
def clips(make: Make, cases: list[PromptCase]) -> Clips:
    """The clips of all cases in one mode, at the default strength; each mode is generated once."""
    return cache(lambda mode: [make(case, mode) for case in cases])


@pytest.fixture(scope="module")
def round_trip(wan_folder: Path) -> Callable[[Pixels], Pixels]:
    """The reconstruction of an image by the video VAE, the upper limit of the similarity."""
    codec = VideoVAE(diffusers.AutoencoderKLWan.from_pretrained(wan_folder / "vae").float())

    def back(picture: Pixels) -> Pixels:
        with torch.no_grad():
            latents = codec.encode(image_tensor(Image.fromarray(picture), NATIVE_PX, NATIVE_PX))
            return np.asarray(to_images(codec.decode(latents))[0])

    return back


@pytest.mark.parametrize("mode", ["start", "both"])
def test_a_clip_begins_with_its_start_reference(
    clips: Clips,
    cases: list[PromptCase],
    round_trip: Callable[[Pixels], Pixels],
    decibels: Decibels,
    mode: str,
) -> None:
    """From about 30 dB differences are not visible."""
    for case, clip in zip(cases, clips(mode), strict=True):
        assert decibels(clip[0], round_trip(case.first)) >= 30


@pytest.mark.parametrize("mode", ["end", "both"])
def test_a_clip_ends_closer_to_its_end_reference(
    clips: Clips, cases: list[PromptCase], decibels: Decibels, mode: str
) -> None:
    """The squared error is halved (3 dB). The last frame is decoded with earlier ones, so it is not exact."""
    gains = [
        decibels(steered[-1], case.last) - decibels(free[-1], case.last)
        for case, steered, free in zip(cases, clips(mode), clips("none"), strict=True)
    ]
    assert np.mean(gains) >= 3


def test_a_clip_from_a_single_reference_keeps_its_content(
    clips: Clips, cases: list[PromptCase], decibels: Decibels
) -> None:
    """On average all frames are closer to the reference than those of a clip without it."""
    gains = np.array(
        [
            [decibels(seen, case.first) - decibels(free_frame, case.first) for seen, free_frame in frames]
            for case, frames in (
                (case, zip(steered, free, strict=True))
                for case, steered, free in zip(cases, clips("single"), clips("none"), strict=True)
            )
        ]
    )
    assert gains.mean() >= 1
    assert (gains.mean(axis=0) > 0).all()


@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
def test_a_different_reference_gives_a_different_clip(
    make: Make, clips: Clips, cases: list[PromptCase], mode: str
) -> None:
    """Seed, prompt and parameters are equal; equal references give equal clips."""
    made = clips(mode)[0]
    assert np.abs(make(cases[0], mode, steered_by=cases[1]).astype(float) - made).mean() > 10
    assert np.array_equal(make(cases[0], mode), made)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
def test_more_strength_never_brings_a_clip_closer(
    make: Make, cases: list[PromptCase], decibels: Decibels, mode: str
) -> None:
    """The similarity to the reference decreases with the strength."""
    strengths = [strength for strength in STRENGTHS if mode == "single" or strength >= FIXED_STRENGTH]
    closeness = [
        np.mean(
            [
                closeness_db(
                    mode, make(case, mode, denoise_strength=strength, steps=SWEEP_STEPS), case, decibels
                )
                for case in cases[:SWEPT]
            ]
        )
        for strength in strengths
    ]
    assert all(later <= earlier + TOLERANCE_DB for earlier, later in pairwise(closeness)), closeness
    assert closeness[-1] < closeness[0] - 1.5


@pytest.mark.parametrize("mode", ["start", "end", "both"])
def test_strength_has_no_effect_on_frames_that_are_fixed_in_all_steps(
    make: Make, cases: list[PromptCase], mode: str
) -> None:
    """Low strengths give equal clips."""
    first, *others = (
        make(cases[0], mode, denoise_strength=strength) for strength in (0.0, 0.15, FIXED_STRENGTH)
    )
    assert all(np.array_equal(first, other) for other in others)


def closeness_db(mode: str, clip: Pixels, case: PromptCase, decibels: Decibels) -> float:
    """PSNR (dB) of the frames that the mode fixes, relative to their references."""
    ends = {"start": [(0, case.first)], "end": [(-1, case.last)], "both": [(0, case.first), (-1, case.last)]}
    compared = ends.get(mode) or [(k, case.first) for k in range(len(clip))]
    return float(np.mean([decibels(clip[at], picture) for at, picture in compared]))


def test_more_strength_never_brings_an_image_closer(
    make: Make, cases: list[PromptCase], decibels: Decibels
) -> None:
    """Image jobs with a reference follow the same rule over the whole range of strengths."""
    closeness = [
        np.mean(
            [
                decibels(
                    make(case, "single", frames=1, denoise_strength=strength, steps=SWEEP_STEPS)[0],
                    case.first,
                )
                for case in cases[:SWEPT]
            ]
        )
        for strength in STRENGTHS
    ]
    assert all(later <= earlier + TOLERANCE_DB for earlier, later in pairwise(closeness)), closeness
    assert closeness[0] > closeness[-1] + 10


@pytest.mark.parametrize("word", ["right", "left"])
def test_a_clip_with_a_start_reference_has_the_motion_of_its_prompt(make: Make, word: str) -> None:
    """The reference decides the first frame, the prompt the motion."""
    pictured = render_clip(random_clip(np.random.default_rng((SEED, 62)), held_out=False), 1)[0]
    case = PromptCase(f"a big red circle moving {word} on a white background", 3, pictured, pictured)
    clip = make(case, "start", frames=17, steps=12)
    assert recognize_clip(list(clip)).motion == word
