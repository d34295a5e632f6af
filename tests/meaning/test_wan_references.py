"""What references mean to the trained tiny-wan, read from the pixels, through the serving pipeline.

Prompts and references know nothing of each other: only the reference can bring a clip closer to itself.
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
CLIPS = 20
SWEPT = 6
"""Clips at every strength."""
STRENGTHS = (0.0, 0.4, 0.7, 1.0)
HELD = 0.4
"""Up to one half, frames are held to the end: nothing lies between such strengths."""
FRAMES = 5
STEPS = 8
SWEEP_STEPS = 25
"""Those of the fast types. In eight, a frame that is let go late overshoots and lands beyond the prompt's own
clip, which has nothing of the reference either."""
WAVER_DB = 0.25
"""Where nothing of a reference is left the mean over six clips still wavers."""

Decibels = Callable[[Pixels, Pixels], float]
Make = Callable[..., Pixels]
Clips = Callable[[str], list[Pixels]]


@dataclass(frozen=True)
class PromptCase:
    """A prompt, and two pictures of something else that lie some frames apart."""

    prompt: str
    seed: int
    first: Pixels
    last: Pixels

    @property
    def references(self) -> ReferenceImages:
        """All of them: a mode takes those it needs."""
        first, last = Image.fromarray(self.first), Image.fromarray(self.last)
        return ReferenceImages(single=first, start=first, end=last)


@pytest.fixture(scope="module")
def cases() -> list[PromptCase]:
    """Captions of clips that no training clip was, and references that show other clips."""
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
    """A picture through the video VAE and back: what is lost there no clip can have."""
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
    """In every case: from about 30 dB on, people see no difference."""
    for case, clip in zip(cases, clips(mode), strict=True):
        assert decibels(clip[0], round_trip(case.first)) >= 30


@pytest.mark.parametrize("mode", ["end", "both"])
def test_a_clip_ends_closer_to_its_end_reference(
    clips: Clips, cases: list[PromptCase], decibels: Decibels, mode: str
) -> None:
    """3 dB are half of what differed. Exact it cannot be: the last frame is decoded with those before it."""
    gains = [
        decibels(steered[-1], case.last) - decibels(free[-1], case.last)
        for case, steered, free in zip(cases, clips(mode), clips("none"), strict=True)
    ]
    assert np.mean(gains) >= 3


def test_a_clip_from_a_single_reference_keeps_its_content(
    clips: Clips, cases: list[PromptCase], decibels: Decibels
) -> None:
    """Not its first frame alone: on average every frame is closer to it than the prompt's own."""
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
def test_another_reference_makes_another_clip(
    make: Make, clips: Clips, cases: list[PromptCase], mode: str
) -> None:
    """With the same seed, prompt and numbers; and the same reference makes the same clip."""
    made = clips(mode)[0]
    assert np.abs(make(cases[0], mode, steered_by=cases[1]).astype(float) - made).mean() > 10
    assert np.array_equal(make(cases[0], mode), made)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
def test_more_strength_never_brings_a_clip_closer(
    make: Make, cases: list[PromptCase], decibels: Decibels, mode: str
) -> None:
    """Callers turn it up to get away from the reference."""
    strengths = [strength for strength in STRENGTHS if mode == "single" or strength >= HELD]
    closeness = [
        np.mean(
            [
                close(mode, make(case, mode, denoise_strength=strength, steps=SWEEP_STEPS), case, decibels)
                for case in cases[:SWEPT]
            ]
        )
        for strength in strengths
    ]
    assert all(later <= earlier + WAVER_DB for earlier, later in pairwise(closeness)), closeness
    assert closeness[-1] < closeness[0] - 1.5


@pytest.mark.parametrize("mode", ["start", "end", "both"])
def test_frames_that_are_held_to_the_end_leave_little_strength_nothing_to_do(
    make: Make, cases: list[PromptCase], mode: str
) -> None:
    """Neither closer nor further: the same clip."""
    first, *others = (make(cases[0], mode, denoise_strength=strength) for strength in (0.0, 0.15, HELD))
    assert all(np.array_equal(first, other) for other in others)


def close(mode: str, clip: Pixels, case: PromptCase, decibels: Decibels) -> float:
    """How close the frames that the mode speaks of come to their references."""
    ends = {"start": [(0, case.first)], "end": [(-1, case.last)], "both": [(0, case.first), (-1, case.last)]}
    compared = ends.get(mode) or [(k, case.first) for k in range(len(clip))]
    return float(np.mean([decibels(clip[at], picture) for at, picture in compared]))


def test_more_strength_never_brings_a_picture_closer(
    make: Make, cases: list[PromptCase], decibels: Decibels
) -> None:
    """Image jobs take references as well, and follow the same rule over their whole range."""
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
    assert all(later <= earlier + WAVER_DB for earlier, later in pairwise(closeness)), closeness
    assert closeness[0] > closeness[-1] + 10


@pytest.mark.parametrize("word", ["right", "left"])
def test_a_clip_that_begins_with_a_picture_moves_as_asked(make: Make, word: str) -> None:
    """The picture says where it begins, and the words what happens then."""
    pictured = render_clip(random_clip(np.random.default_rng((SEED, 62)), held_out=False), 1)[0]
    case = PromptCase(f"a big red circle moving {word} on a white background", 3, pictured, pictured)
    clip = make(case, "start", frames=17, steps=12)
    assert recognize_clip(list(clip)).motion == word
