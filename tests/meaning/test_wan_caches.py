"""Step caches on the trained tiny-wan: PSNR of cached clips relative to uncached ones."""

from __future__ import annotations

import numpy as np
import pytest

from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.wan.caches import CacheName
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline

pytestmark = pytest.mark.timeout(300)

PROMPTS = (
    "a red circle moves right over a green background",
    "a blue square moves left over a white background",
)


def clips(cache: CacheName | None, threshold: float | None = None) -> np.ndarray:
    """Two clips of 50 steps, (clip, frame, height, width, 3)."""
    options = WanOptions(cache=cache, threshold=threshold, previews=False)
    wan = WanPipeline(find_wan(None), cap=64, options=options)
    made = []
    for seed, prompt in enumerate(PROMPTS):
        job = VideoJob(
            id="job-1",
            type="video_high",
            user_id="user-1",
            expected_time=240,
            prompt=prompt,
            steps=50,
            guidance_scale=6.5,
            width=64,
            height=64,
            frames=17,
            seed=seed,
        )
        frames = wan.generate(job, on_step=lambda *_: None).frames
        made.append([np.asarray(frame) for frame in frames])
    return np.array(made).astype(float)


def decibel(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(one - other).mean())))


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """The clips without a cache."""
    return clips(None)


@pytest.mark.parametrize(
    ("cache", "least"), [("first_block", 28), ("mag", 28), ("taylorseer", 38), ("pab", 27), ("faster", 33)]
)
def test_a_cached_clip_is_close_to_the_uncached_one(
    exact: np.ndarray, cache: CacheName, least: float
) -> None:
    """Enabling a cache changes the speed, not the content of clips."""
    assert decibel(exact, clips(cache)) >= least


def test_different_clips_have_a_low_psnr(exact: np.ndarray) -> None:
    """The threshold of the other tests distinguishes clips."""
    assert decibel(exact[0], exact[1]) < 15


@pytest.mark.parametrize("cache", ["first_block", "mag"])
def test_a_larger_threshold_gives_a_lower_psnr(exact: np.ndarray, cache: CacheName) -> None:
    """The threshold trades quality for speed."""
    assert decibel(exact, clips(cache, 0.01)) > decibel(exact, clips(cache, 0.3))
