"""The limit per host holds without blocking threads, and loses no item."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from ourvidz.callbacks.limiter import PerHostLimiter

PATIENCE_S = 10.0


class Work:
    """Work that waits for `go`; records the finished items and the largest number of concurrent calls."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.max_active = 0
        self.go = threading.Event()
        self._active = 0
        self._changed = threading.Condition()

    def __call__(self, item: str) -> None:
        with self._changed:
            self._active += 1
            self.max_active = max(self.max_active, self._active)
            self._changed.notify_all()
        assert self.go.wait(PATIENCE_S)
        with self._changed:
            self._active -= 1
            self.done.append(item)
            self._changed.notify_all()

    def wait_until_working(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._active >= count, PATIENCE_S)


def test_at_the_limit_the_thread_returns_and_the_item_is_queued() -> None:
    """A thread that waited for a slow host could not deliver to others."""
    limiter, work = PerHostLimiter(max_active=2), Work()
    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(limiter.run, "a", item, work) for item in ("1", "2")]
        work.wait_until_working(2)
        assert limiter.run("a", "3", work) is False
        assert limiter.run("a", "4", work) is False
        assert limiter.backlog_size("a") == 2
        work.go.set()
        assert [f.result(PATIENCE_S) for f in first] == [True, True]
    assert sorted(work.done) == ["1", "2", "3", "4"]
    assert work.max_active == 2


def test_hosts_are_limited_separately() -> None:
    """A host that never answers does not delay the others."""
    limiter, hung, free = PerHostLimiter(max_active=1), Work(), Work()
    free.go.set()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(limiter.run, "hung", "1", hung)
        hung.wait_until_working(1)
        assert limiter.run("free", "2", free) is True
        hung.go.set()
        held.result(PATIENCE_S)
    assert free.done == ["2"]


def test_an_item_is_queued_once_and_the_backlog_is_bounded() -> None:
    """The sweep requests the same deliveries every two seconds."""
    limiter, work = PerHostLimiter(max_active=1, max_backlog=2), Work()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(limiter.run, "a", "1", work)
        work.wait_until_working(1)
        for item in ("2", "2", "3", "3", "4", "2"):
            assert limiter.run("a", item, work) is False
        assert limiter.backlog_size("a") == 2
        work.go.set()
        held.result(PATIENCE_S)
    assert work.done == ["1", "2", "3"]


def test_work_that_raises_frees_its_slot() -> None:
    """A lost ledger connection must not reduce the limit for good."""
    limiter, work = PerHostLimiter(max_active=1), Work()

    def broken(item: str) -> None:
        assert limiter.run("a", "waits", work) is False
        raise RuntimeError(item)

    with pytest.raises(RuntimeError, match="1"):
        limiter.run("a", "1", broken)
    work.go.set()
    assert limiter.run("a", "2", work) is True
    assert work.done == ["2", "waits"]


def test_a_thread_leaves_the_backlog_after_its_time_slice() -> None:
    """A thread whose host is never idle still ends its task; other threads continue with the backlog."""
    limiter, work = PerHostLimiter(max_active=1, time_slice_s=0.0), Work()
    work.go.set()

    def queues_another(item: str) -> None:
        limiter.run("a", "later", work)

    assert limiter.run("a", "1", queues_another) is True
    assert work.done == []
    assert limiter.backlog_size("a") == 1
    assert limiter.run("a", "later", work) is True
    assert work.done == ["later"]
    assert limiter.backlog_size("a") == 0


def test_nothing_is_lost_under_many_threads() -> None:
    """Every item is processed, and the limit holds, in every order of threads."""
    limiter, work = PerHostLimiter(max_active=3), Work()
    work.go.set()
    items = [f"{lane}{n}" for n in range(200) for lane in "ab"]
    with ThreadPoolExecutor(16) as threads:
        done, _ = wait([threads.submit(limiter.run, item[0], item, work) for item in items], PATIENCE_S)
    assert len(done) == len(items)
    assert sorted(work.done) == sorted(items)
    assert work.max_active <= 6
    assert limiter.backlog_size("a") == limiter.backlog_size("b") == 0
