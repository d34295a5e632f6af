from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ourvidz.errors import Cancelled
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.caches import CACHES, CacheName, StepCache
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job

MakeJob = Callable[..., VideoJob]
LEVELS = 2
THRESHOLDS = {"first_block": 0.5, "mag": 0.5}
"""So much that random weights have steps to reuse."""
STEPS = 12


@pytest.fixture(scope="module", params=CACHES)
def cached(request: pytest.FixtureRequest, wan_checkpoint: Checkpoint) -> WanPipeline:
    """A warm pipeline with one of the step caches."""
    name: CacheName = request.param
    options = WanOptions(cache=name, threshold=THRESHOLDS.get(name), previews=False)
    pipeline = WanPipeline(wan_checkpoint, cap=64, options=options)
    pipeline.load()
    return pipeline


def clip(wan: WanPipeline, job: VideoJob) -> np.ndarray:
    made = wan.generate(job, on_step=lambda *_: None)
    return np.stack([np.asarray(frame) for frame in made.frames]).astype(int)


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


@contextmanager
def work(wan: WanPipeline) -> Iterator[list[str]]:
    """What was computed in the last block, by its own layers: steps that are reused compute nothing there."""
    seen: list[str] = []
    block = wan.components.pipe.transformer.blocks[-1]
    parts = {"attention": block.attn1.to_q, "feed-forward": block.ffn}
    hooks = [
        part.register_forward_pre_hook(
            lambda _, given, name=name: seen.extend([name] * len(given[0]))  # rows: some ask for two at once
        )
        for name, part in parts.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def test_a_cache_computes_less_and_makes_another_clip(cached: WanPipeline, wan: WanPipeline) -> None:
    """A setting that changed nothing would be a cache that does not work on this model."""
    job = video_job(steps=STEPS)
    with work(wan) as all_of_it:
        plain = clip(wan, job)
    with work(cached) as some_of_it:
        reused = clip(cached, job)
    assert len(some_of_it) < len(all_of_it) == STEPS * 2 * 2
    assert reused.shape == plain.shape
    assert far(plain, reused) > 0


def test_a_second_job_is_the_first_one_again(cached: WanPipeline) -> None:
    """What a cache has seen of one job must never show in the next."""
    first = clip(cached, video_job(steps=STEPS))
    clip(cached, video_job(steps=5, seed=8, frames=1, guidance_scale=1.0))
    assert far(first, clip(cached, video_job(steps=STEPS))) <= LEVELS


@pytest.mark.parametrize("end", ["done", "cancelled"])
def test_a_cache_is_gone_with_its_job(cached: WanPipeline, end: str) -> None:
    """Also when a job stops half-way: its tensors would stay on the GPU."""
    transformer = cached.components.pipe.transformer

    def on_step(done: int, _: int) -> None:
        assert transformer.is_cache_enabled or done in (0, STEPS)
        if end == "cancelled" and done == 7:
            raise Cancelled("enough")

    before = clip(cached, video_job(steps=STEPS))
    try:
        cached.generate(video_job(steps=STEPS), on_step=on_step)
    except Cancelled:
        assert end == "cancelled"
    assert not transformer.is_cache_enabled
    assert all(not getattr(part, "_diffusers_hook", Nothing).hooks for part in transformer.modules())
    assert far(before, clip(cached, video_job(steps=STEPS))) <= LEVELS


class Nothing:
    hooks: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "changed",
    [{"steps": 1}, {"steps": 3}, {"frames": 1}, {"guidance_scale": 1.0}, {"width": 48}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_job_runs_with_a_cache(cached: WanPipeline, changed: dict[str, int]) -> None:
    """Few steps, one frame, no guidance: none of them is what caches were written for."""
    made = clip(cached, video_job(**{"steps": 6} | changed))
    assert made.shape[:3] == (changed.get("frames", 5), 32, changed.get("width", 32))


@pytest.mark.parametrize(("name", "asked"), [("pab", [2, 2]), ("faster", [2, 1]), ("first_block", [1] * 4)])
def test_caches_that_know_no_prompts_get_both_in_one_batch(
    wan_checkpoint: Checkpoint, name: CacheName, asked: list[int]
) -> None:
    """They would give the negative prompt what they remember of the other. One leaves it out now and then."""
    pipeline = WanPipeline(wan_checkpoint, options=WanOptions(cache=name, previews=False))
    pipeline.load()
    rows: list[int] = []
    pipeline.components.pipe.transformer.patch_embedding.register_forward_pre_hook(
        lambda _, given: rows.append(len(given[0]))
    )
    clip(pipeline, video_job(steps=2))
    assert rows == asked


def test_one_batch_of_both_prompts_is_what_two_passes_are(
    wan: WanPipeline, wan_checkpoint: Checkpoint
) -> None:
    """Until there is something to reuse, nothing may change."""
    pipeline = WanPipeline(wan_checkpoint, options=WanOptions(cache="pab", previews=False))
    job = video_job(steps=1, negative_prompt="fog")
    assert far(clip(pipeline, job), clip(wan, job)) <= LEVELS


@pytest.mark.parametrize(
    ("name", "blocks", "vace", "caches"),
    [
        ("first_block", 2, False, True),
        ("first_block", 1, False, False),
        ("mag", 2, True, False),
        ("first_block", 2, True, False),
        ("pab", 2, True, False),
        ("taylorseer", 2, True, True),
    ],
)
def test_a_transformer_that_a_cache_does_not_fit_is_left_alone(
    name: CacheName, blocks: int, vace: bool, caches: bool
) -> None:
    """VACE feeds its hints between the blocks: reused steps would count them twice."""
    told: list[str] = []
    transformer = SimpleNamespace(
        blocks=[None] * blocks,
        enable_cache=lambda _: told.append("on"),
        disable_cache=lambda: told.append("off"),
        **({"vace_blocks": [None]} if vace else {}),
    )
    with StepCache(name).enabled(transformer, [1.0, 0.5, 0.0], guided=True):
        pass
    assert told == (["on", "off"] if caches else [])


def test_what_mag_learns_is_kept_for_the_next_worker(wan_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A restart costs no second calibration, and makes the same clips."""
    options = WanOptions(cache="mag", threshold=0.5, calibrations=tmp_path / "kept", previews=False)
    first, second = (WanPipeline(wan_checkpoint, cap=64, options=options) for _ in range(2))
    made = clip(first, video_job(steps=STEPS))
    (file,) = (tmp_path / "kept").iterdir()
    written = file.read_bytes()
    passes: list[int] = []
    second.load()
    second.components.pipe.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
    assert far(made, clip(second, video_job(steps=STEPS))) <= LEVELS
    assert len(passes) == 2 * STEPS
    assert file.read_bytes() == written
