"""Step caches: they save computation, and leave no state behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from ourvidz.errors import Cancelled
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.caches import CACHES, CacheName, StepCache
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job
from tests.pipelines.helpers import MAX_DIFFERENCE, batch_sizes, before_forward, clip_levels, difference

THRESHOLDS = {"first_block": 0.5, "mag": 0.5}
"""High enough for random weights to skip steps."""
STEPS = 12


@pytest.fixture(scope="module", params=CACHES)
def cached(request: pytest.FixtureRequest, wan_checkpoint: Checkpoint) -> WanPipeline:
    """A loaded pipeline with one of the step caches."""
    name: CacheName = request.param
    options = WanOptions(cache=name, threshold=THRESHOLDS.get(name), previews=False)
    pipeline = WanPipeline(wan_checkpoint, cap=64, options=options)
    pipeline.load()
    return pipeline


@contextmanager
def computed_rows(wan: WanPipeline) -> Iterator[list[int]]:
    """Records the batch size of every pass through attention and feed-forward of the last block; skipped
    steps have none."""
    rows: list[int] = []
    block = wan.components.pipe.transformer.blocks[-1]
    with (
        before_forward(block.attn1.to_q, lambda tensor: rows.append(len(tensor))),
        before_forward(block.ffn, lambda tensor: rows.append(len(tensor))),
    ):
        yield rows


def test_a_cache_computes_less_and_changes_the_clip(cached: WanPipeline, wan: WanPipeline) -> None:
    """A setting without an effect would be a cache that does not work with this model."""
    job = video_job(steps=STEPS)
    with computed_rows(wan) as all_rows:
        expected = clip_levels(wan, job)
    with computed_rows(cached) as rows:
        clip = clip_levels(cached, job)
    assert sum(rows) < sum(all_rows) == STEPS * 2 * 2
    assert clip.shape == expected.shape
    assert difference(expected, clip) > 0


def test_a_job_is_not_affected_by_earlier_ones(cached: WanPipeline) -> None:
    """The state of a cache must not reach the next job."""
    first = clip_levels(cached, video_job(steps=STEPS))
    clip_levels(cached, video_job(steps=5, seed=8, frames=1, guidance_scale=1.0))
    assert difference(first, clip_levels(cached, video_job(steps=STEPS))) <= MAX_DIFFERENCE


@pytest.mark.parametrize("end", ["done", "cancelled"])
def test_a_cache_is_removed_with_its_job(cached: WanPipeline, end: str) -> None:
    """Also if the job is cancelled: the cache's tensors would stay on the GPU."""
    transformer = cached.components.pipe.transformer

    def on_step(done: int, _: int) -> None:
        assert transformer.is_cache_enabled or done in (0, STEPS)
        if end == "cancelled" and done == 7:
            raise Cancelled("enough")

    expected = clip_levels(cached, video_job(steps=STEPS))
    try:
        cached.generate(video_job(steps=STEPS), on_step=on_step)
    except Cancelled:
        assert end == "cancelled"
    assert not transformer.is_cache_enabled
    hooks = [getattr(module, "_diffusers_hook", None) for module in transformer.modules()]
    assert all(not hook.hooks for hook in hooks if hook is not None)
    assert difference(expected, clip_levels(cached, video_job(steps=STEPS))) <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    "changes",
    [{"steps": 1}, {"steps": 3}, {"frames": 1}, {"guidance_scale": 1.0}, {"width": 48}],
    ids=lambda changes: next(iter(changes)),
)
def test_every_job_runs_with_every_cache(cached: WanPipeline, changes: dict[str, int]) -> None:
    """Few steps, one frame and no guidance are unusual for a step cache."""
    clip = clip_levels(cached, video_job(**{"steps": 6} | changes))
    assert clip.shape[:3] == (changes.get("frames", 5), 32, changes.get("width", 32))


@pytest.mark.parametrize(
    ("name", "expected"), [("pab", [2, 2]), ("faster", [2, 1]), ("first_block", [1] * 4)]
)
def test_caches_with_one_state_per_module_get_both_prompts_in_one_batch(
    wan_checkpoint: Checkpoint, name: CacheName, expected: list[int]
) -> None:
    """Otherwise they would reuse results of the prompt for the negative prompt. FasterCache skips the
    negative prompt in some steps."""
    pipeline = WanPipeline(wan_checkpoint, options=WanOptions(cache=name, previews=False))
    pipeline.load()
    with batch_sizes(pipeline.components.pipe.transformer.patch_embedding) as sizes:
        clip_levels(pipeline, video_job(steps=2))
    assert sizes == expected


def test_one_joint_batch_equals_two_passes(wan: WanPipeline, wan_checkpoint: Checkpoint) -> None:
    """In the first step there is nothing to reuse."""
    pipeline = WanPipeline(wan_checkpoint, options=WanOptions(cache="pab", previews=False))
    job = video_job(steps=1, negative_prompt="fog")
    assert difference(clip_levels(pipeline, job), clip_levels(wan, job)) <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("name", "blocks", "vace", "enabled"),
    [
        ("first_block", 2, False, True),
        ("first_block", 1, False, False),
        ("mag", 2, True, False),
        ("first_block", 2, True, False),
        ("pab", 2, True, False),
        ("taylorseer", 2, True, True),
    ],
)
def test_a_cache_is_not_enabled_on_a_transformer_that_it_does_not_support(
    name: CacheName, blocks: int, vace: bool, enabled: bool
) -> None:
    """VACE adds control signals between the blocks, which reused steps would contain twice."""
    calls: list[str] = []
    transformer = SimpleNamespace(
        blocks=[None] * blocks,
        enable_cache=lambda _: calls.append("enable"),
        disable_cache=lambda: calls.append("disable"),
        **({"vace_blocks": [None]} if vace else {}),
    )
    with StepCache(name).enabled(transformer, [1.0, 0.5, 0.0], guided=True):
        pass
    assert calls == (["enable", "disable"] if enabled else [])


def test_the_calibration_of_mag_is_reused_by_the_next_worker(
    wan_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """It reads the file instead of measuring again, and generates the same clips."""
    options = WanOptions(cache="mag", threshold=0.5, calibrations=tmp_path / "calibrations", previews=False)
    first, second = (WanPipeline(wan_checkpoint, cap=64, options=options) for _ in range(2))
    expected = clip_levels(first, video_job(steps=STEPS))
    (file,) = (tmp_path / "calibrations").iterdir()
    content = file.read_bytes()
    second.load()
    with batch_sizes(second.components.pipe.transformer) as sizes:
        clip = clip_levels(second, video_job(steps=STEPS))
    assert difference(expected, clip) <= MAX_DIFFERENCE
    assert len(sizes) == 2 * STEPS
    assert file.read_bytes() == content
