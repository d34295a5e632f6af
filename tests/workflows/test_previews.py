"""Previews: rate, thread, and failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait

import pytest
from PIL import Image

from ourvidz.pipelines.base import PreviewRenderer, Snapshot
from ourvidz.workflows.previews import Previews
from tests.factories import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0.0)


@pytest.fixture
def previews(clock: ManualClock) -> Iterator[Previews]:
    previews = Previews("job-1", clock=clock)
    yield previews
    previews.close()


def green() -> Image.Image:
    return Image.new("RGB", (128, 64), "green")


def collect(previews: Previews) -> int:
    """Wait for the thread and collect; returns the number of previews."""
    if previews._rendering is not None:
        wait([previews._rendering], timeout=10)
    return len(previews.collect())


def recording(threads: list[threading.Thread], renderer: PreviewRenderer = green) -> Snapshot:
    """A snapshot that records the thread which takes it."""

    def snapshot() -> PreviewRenderer:
        threads.append(threading.current_thread())
        return renderer

    return snapshot


def test_a_preview_is_collected_once(previews: Previews) -> None:
    """Every item of a stream is sent to all followers."""
    previews.offer(recording([]))
    assert (collect(previews), collect(previews)) == (1, 0)


def test_previews_come_at_most_twice_a_second(previews: Previews, clock: ManualClock) -> None:
    """A fast GPU takes fifty steps in that time."""
    copied: list[threading.Thread] = []
    for step in range(20):
        clock.now = step / 10
        previews.offer(recording(copied))
        collect(previews)
    assert len(copied) == 4


def test_a_preview_is_rendered_on_another_thread_than_its_snapshot(previews: Previews) -> None:
    """Only the denoising thread may read the latents, and it must not wait for rendering."""
    copied: list[threading.Thread] = []
    rendered: list[threading.Thread] = []

    def render() -> Image.Image:
        rendered.append(threading.current_thread())
        return green()

    previews.offer(recording(copied, render))
    collect(previews)
    assert copied == [threading.current_thread()]
    assert rendered != copied


def test_snapshots_offered_while_one_is_rendered_are_dropped(previews: Previews, clock: ManualClock) -> None:
    """Slow rendering must not queue up work, not even copies."""
    release = threading.Event()
    copied: list[threading.Thread] = []
    slow = recording(copied, lambda: green() if release.wait(10) else pytest.fail("never released"))
    for clock.now in (0.0, 1.0, 2.0):
        previews.offer(slow)
        assert previews.collect() == []
    assert len(copied) == 1
    release.set()
    assert collect(previews) == 1
    previews.offer(slow)
    assert len(copied) == 2


@pytest.mark.parametrize("fails", ["snapshot", "renderer"])
def test_after_a_failure_there_are_no_more(previews: Previews, clock: ManualClock, fails: str) -> None:
    """It would fail with every step, and each try costs the job time."""
    taken: list[int] = []

    def render() -> Image.Image:
        raise RuntimeError("no colours")

    def snapshot() -> PreviewRenderer:
        taken.append(1)
        if fails == "snapshot":
            raise RuntimeError("no latents")
        return render

    for clock.now in (0.0, 1.0, 2.0):
        previews.offer(snapshot)
        assert collect(previews) == 0
    assert len(taken) == 1
