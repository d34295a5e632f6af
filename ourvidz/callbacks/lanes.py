"""A cap of concurrent deliveries per host that parks no thread.

Whoever finds a lane full leaves its item in the lane's backlog and goes; whoever finishes in the lane takes
the backlog on. The backlog is only a hint kept in this process: what is lost with it is still due in the
outbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Lane:
    working: int = 0
    backlog: dict[str, None] = field(default_factory=dict)


class PerHostLimiter:
    """`width` items of one lane at a time; at most `backlog` items wait, each once. A thread goes on with
    the backlog for `turn_s` seconds, so that a long one does not keep its task open for ever."""

    def __init__(self, *, width: int = 4, backlog: int = 1000, turn_s: float = 30.0) -> None:
        self._width = width
        self._limit = backlog
        self._turn_s = turn_s
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}

    def run(self, lane: str, item: str, work: Callable[[str], None]) -> bool:
        """Do the item's work, then the backlog's, unless the lane is full: False when the item was left
        in the backlog (or, with that full as well, left alone). What `work` raises ends this turn."""
        if not self._enter(lane, item):
            return False
        until = time.monotonic() + self._turn_s
        current: str | None = item
        try:
            while current is not None:
                work(current)
                current = self._next(lane, leave=time.monotonic() >= until)
        except BaseException:
            self._next(lane, leave=True)
            raise
        return True

    def waiting(self, lane: str) -> int:
        """How many items are in a lane's backlog."""
        with self._lock:
            return len(self._lanes[lane].backlog) if lane in self._lanes else 0

    def _enter(self, name: str, item: str) -> bool:
        with self._lock:
            lane = self._lanes.setdefault(name, _Lane())
            if lane.working < self._width:
                lane.working += 1
                lane.backlog.pop(item, None)
                return True
            if len(lane.backlog) < self._limit:
                lane.backlog[item] = None
            return False

    def _next(self, name: str, *, leave: bool) -> str | None:
        """The oldest item of the backlog, or None and the place given back, in one step: nobody can leave an
        item with a thread that has already decided to go."""
        with self._lock:
            lane = self._lanes[name]
            if lane.backlog and not leave:
                item = next(iter(lane.backlog))
                del lane.backlog[item]
                return item
            lane.working -= 1
            if not lane.working and not lane.backlog:
                del self._lanes[name]
            return None
