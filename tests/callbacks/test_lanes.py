"""A cap per host that parks no thread, with real threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from ourvidz.callbacks.lanes import PerHostLimiter

PATIENCE_S = 10.0


class Work:
    """Work that a test holds back, and that notes what it did and how many did it at once."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.most = 0
        self.go = threading.Event()
        self._now = 0
        self._changed = threading.Condition()

    def __call__(self, item: str) -> None:
        with self._changed:
            self._now += 1
            self.most = max(self.most, self._now)
            self._changed.notify_all()
        assert self.go.wait(PATIENCE_S)
        with self._changed:
            self._now -= 1
            self.done.append(item)
            self._changed.notify_all()

    def wait_until_working(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._now >= count, PATIENCE_S)


def test_a_full_lane_sends_the_thread_away_and_keeps_the_item() -> None:
    """A thread that waited for a slow host would be missing everywhere else."""
    lanes, work = PerHostLimiter(width=2), Work()
    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(lanes.run, "a", item, work) for item in ("1", "2")]
        work.wait_until_working(2)
        assert lanes.run("a", "3", work) is False
        assert lanes.run("a", "4", work) is False
        assert lanes.waiting("a") == 2
        work.go.set()
        assert [f.result(PATIENCE_S) for f in first] == [True, True]
    assert sorted(work.done) == ["1", "2", "3", "4"]
    assert work.most == 2


def test_lanes_do_not_know_each_other() -> None:
    """One hung host leaves the others alone."""
    lanes, hung, free = PerHostLimiter(width=1), Work(), Work()
    free.go.set()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(lanes.run, "hung", "1", hung)
        hung.wait_until_working(1)
        assert lanes.run("free", "2", free) is True
        hung.go.set()
        held.result(PATIENCE_S)
    assert free.done == ["2"]


def test_an_item_waits_once_and_the_backlog_is_bounded() -> None:
    """The sweep names the same jobs every two seconds."""
    lanes, work = PerHostLimiter(width=1, backlog=2), Work()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(lanes.run, "a", "1", work)
        work.wait_until_working(1)
        for item in ("2", "2", "3", "3", "4", "2"):
            assert lanes.run("a", item, work) is False
        assert lanes.waiting("a") == 2
        work.go.set()
        held.result(PATIENCE_S)
    assert work.done == ["1", "2", "3"]


def test_work_that_raises_gives_its_place_back() -> None:
    """A lost ledger connection must not close the lane for good."""
    lanes, work = PerHostLimiter(width=1), Work()

    def broken(item: str) -> None:
        assert lanes.run("a", "waits", work) is False
        raise RuntimeError(item)

    with pytest.raises(RuntimeError, match="1"):
        lanes.run("a", "1", broken)
    work.go.set()
    assert lanes.run("a", "2", work) is True
    assert work.done == ["2", "waits"]


def test_a_turn_ends() -> None:
    """A thread whose host is never idle still returns to its pool; the rest stays with the others."""
    lanes, work = PerHostLimiter(width=1, turn_s=0.0), Work()
    work.go.set()

    def leaves_another(item: str) -> None:
        lanes.run("a", "later", work)

    assert lanes.run("a", "1", leaves_another) is True
    assert work.done == []
    assert lanes.waiting("a") == 1
    assert lanes.run("a", "later", work) is True
    assert work.done == ["later"]
    assert lanes.waiting("a") == 0


def test_nothing_is_lost_under_many_threads() -> None:
    """Every item is worked on, never more than the width at once, whoever wins which race."""
    lanes, work = PerHostLimiter(width=3), Work()
    work.go.set()
    items = [f"{lane}{n}" for n in range(200) for lane in "ab"]
    with ThreadPoolExecutor(16) as threads:
        done, _ = wait([threads.submit(lanes.run, item[0], item, work) for item in items], PATIENCE_S)
    assert len(done) == len(items)
    assert sorted(work.done) == sorted(items)
    assert work.most <= 6
    assert lanes.waiting("a") == lanes.waiting("b") == 0
