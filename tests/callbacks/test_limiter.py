"""The limit per host holds without blocking threads, and loses no item."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from ourvidz.callbacks.limiter import PerHostLimiter

PATIENCE_S = 10.0


class BlockingTask:
    """Blocks every call until `go` is set; records finished items and the peak number of concurrent calls."""

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
    limiter, task = PerHostLimiter(max_active=2), BlockingTask()
    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(limiter.run, "a", item, task) for item in ("1", "2")]
        task.wait_until_working(2)
        assert limiter.run("a", "3", task) is False
        assert limiter.run("a", "4", task) is False
        assert limiter.backlog_size("a") == 2
        task.go.set()
        assert [f.result(PATIENCE_S) for f in first] == [True, True]
    assert sorted(task.done) == ["1", "2", "3", "4"]
    assert task.max_active == 2


def test_hosts_are_limited_separately() -> None:
    """A host that never answers does not delay the others."""
    limiter, hung, free = PerHostLimiter(max_active=1), BlockingTask(), BlockingTask()
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
    limiter, task = PerHostLimiter(max_active=1, max_backlog=2), BlockingTask()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(limiter.run, "a", "1", task)
        task.wait_until_working(1)
        for item in ("2", "2", "3", "3", "4", "2"):
            assert limiter.run("a", item, task) is False
        assert limiter.backlog_size("a") == 2
        task.go.set()
        held.result(PATIENCE_S)
    assert task.done == ["1", "2", "3"]


def test_work_that_raises_frees_its_slot() -> None:
    """A lost ledger connection must not reduce the limit for good."""
    limiter, task = PerHostLimiter(max_active=1), BlockingTask()

    def broken(item: str) -> None:
        assert limiter.run("a", "waits", task) is False
        raise RuntimeError(item)

    with pytest.raises(RuntimeError, match="1"):
        limiter.run("a", "1", broken)
    task.go.set()
    assert limiter.run("a", "2", task) is True
    assert task.done == ["2", "waits"]


def test_a_thread_leaves_the_backlog_after_its_time_slice() -> None:
    """A thread whose host is never idle still ends its work; other threads continue with the backlog."""
    limiter, task = PerHostLimiter(max_active=1, time_slice_s=0.0), BlockingTask()
    task.go.set()

    def queues_another(item: str) -> None:
        limiter.run("a", "later", task)

    assert limiter.run("a", "1", queues_another) is True
    assert task.done == []
    assert limiter.backlog_size("a") == 1
    assert limiter.run("a", "later", task) is True
    assert task.done == ["later"]
    assert limiter.backlog_size("a") == 0


def test_nothing_is_lost_under_many_threads() -> None:
    """Every item is processed, and the limit holds, in every order of threads."""
    limiter, task = PerHostLimiter(max_active=3), BlockingTask()
    task.go.set()
    items = [f"{lane}{n}" for n in range(200) for lane in "ab"]
    with ThreadPoolExecutor(16) as threads:
        done, _ = wait([threads.submit(limiter.run, item[0], item, task) for item in items], PATIENCE_S)
    assert len(done) == len(items)
    assert sorted(task.done) == sorted(items)
    assert task.max_active <= 6
    assert limiter.backlog_size("a") == limiter.backlog_size("b") == 0
