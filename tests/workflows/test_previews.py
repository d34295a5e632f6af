from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import pytest
from PIL import Image

from ourvidz.pipelines.base import PreviewRenderer
from ourvidz.workflows.previews import Previews


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def previews(clock: Clock) -> Iterator[Previews]:
    made = Previews("job-1", clock=clock)
    yield made
    made.close()


def green() -> Image.Image:
    return Image.new("RGB", (128, 64), "green")


def waited(previews: Previews) -> int:
    """How many previews there are to fetch once the thread is done."""
    if previews._drawing is not None:
        wait([previews._drawing], timeout=10)
    return len(previews.drawn())


def counting(looks: list[threading.Thread], look: PreviewRenderer = green) -> Callable[[], PreviewRenderer]:
    """What to offer; writes down who copied."""

    def take() -> PreviewRenderer:
        looks.append(threading.current_thread())
        return look

    return take


def test_a_preview_is_fetched_once(previews: Previews) -> None:
    """Every item of a stream is sent to all followers."""
    previews.offer(counting([]))
    assert (waited(previews), waited(previews)) == (1, 0)


def test_previews_come_at_most_twice_a_second(previews: Previews, clock: Clock) -> None:
    """A fast GPU takes fifty steps in that time."""
    copied: list[threading.Thread] = []
    for step in range(20):
        clock.now = step / 10
        previews.offer(counting(copied))
        waited(previews)
    assert len(copied) == 4


def test_what_is_copied_here_is_drawn_elsewhere(previews: Previews) -> None:
    """Latents may be touched by the thread that denoises alone, and it has no time to draw."""
    copied: list[threading.Thread] = []
    drew: list[threading.Thread] = []

    def look() -> Image.Image:
        drew.append(threading.current_thread())
        return green()

    previews.offer(counting(copied, look))
    waited(previews)
    assert copied == [threading.current_thread()]
    assert drew != copied


def test_while_one_is_drawn_the_next_are_dropped(previews: Previews, clock: Clock) -> None:
    """A slow drawing must not pile up work, not even copies."""
    release = threading.Event()
    copied: list[threading.Thread] = []
    slow = counting(copied, lambda: green() if release.wait(10) else pytest.fail("never released"))
    for clock.now in (0.0, 1.0, 2.0):
        previews.offer(slow)
        assert previews.drawn() == []
    assert len(copied) == 1
    release.set()
    assert waited(previews) == 1
    previews.offer(slow)
    assert len(copied) == 2


@pytest.mark.parametrize("fails", ["copying", "drawing"])
def test_after_a_failure_there_are_no_more(previews: Previews, clock: Clock, fails: str) -> None:
    """What failed once fails with every step, and each try costs the job time."""
    taken: list[int] = []

    def look() -> Image.Image:
        raise RuntimeError("no colours")

    def take() -> PreviewRenderer:
        taken.append(1)
        if fails == "copying":
            raise RuntimeError("no latents")
        return look

    for clock.now in (0.0, 1.0, 2.0):
        previews.offer(take)
        assert waited(previews) == 0
    assert len(taken) == 1
