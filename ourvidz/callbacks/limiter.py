"""Limits concurrent deliveries per host without blocking threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_OTHERS = 12
"""Of the threads of an io process, how many may deliver to other hosts than the default receiver's."""


@dataclass(slots=True)
class _Host:
    active: int = 0
    backlog: dict[str, None] = field(default_factory=dict)


class PerHostLimiter:
    """Runs at most `max_active` items per host at a time. Safe to share between threads.

    If the host is at its limit, the item is queued in that host's backlog (at most `max_backlog` items, each
    once), and a thread that finishes an item of the host continues with it, for `time_slice_s` seconds at
    most. The backlog exists in this process only: what is lost with it is still due in the outbox.

    All hosts but `favoured` have `max_others` threads together: hosts that hang, however many, leave some to
    the favoured one.
    """

    def __init__(
        self,
        *,
        max_active: int = 4,
        max_backlog: int = 1000,
        time_slice_s: float = 30.0,
        favoured: str | None = None,
        max_others: int = MAX_OTHERS,
    ) -> None:
        self._favoured = favoured
        self._max_others = max_others
        self._others = 0
        self._max_active = max_active
        self._max_backlog = max_backlog
        self._time_slice_s = time_slice_s
        self._lock = threading.Lock()
        self._closed = False
        self._hosts: dict[str, _Host] = {}

    def run(self, host: str, item: str, work: Callable[[str], None]) -> bool:
        """Call `work(item)`, then `work` for the items of the host's backlog.

        Returns False, without calling `work`, if the host is at its limit, or the others are at theirs; the
        item is then in the backlog, or dropped if that is full or no thread is at the host. Returns False
        after `close` too. An exception of `work` ends the loop and
        is raised.
        """
        if not self._admit(host, item):
            return False
        until = time.monotonic() + self._time_slice_s
        current: str | None = item
        try:
            while current is not None:
                work(current)
                current = self._next(host, leave=time.monotonic() >= until)
        except BaseException:
            self._next(host, leave=True)
            raise
        return True

    def close(self) -> None:
        """Call `work` for no further item; the backlogs are dropped."""
        with self._lock:
            self._closed = True

    def backlog_size(self, host: str) -> int:
        """The number of items in the backlog of a host."""
        with self._lock:
            return len(self._hosts[host].backlog) if host in self._hosts else 0

    def _admit(self, name: str, item: str) -> bool:
        """Take a slot of the host and return True; without a free slot add the item to its backlog."""
        with self._lock:
            if self._closed:
                return False
            host = self._hosts.get(name, _Host())
            is_other = self._favoured is not None and name != self._favoured
            if host.active < self._max_active and not (is_other and self._others >= self._max_others):
                self._hosts[name] = host
                host.active += 1
                self._others += is_other
                host.backlog.pop(item, None)
                return True
            # Without a thread at this host nobody would take it from there: it is announced again.
            if host.active and len(host.backlog) < self._max_backlog:
                host.backlog[item] = None
            return False

    def _next(self, name: str, *, leave: bool) -> str | None:
        """Take the oldest item of the backlog, or give up the thread's slot and return None.

        Both happen under one lock, so no item is queued behind a thread that has already decided to leave.
        """
        with self._lock:
            host = self._hosts[name]
            if host.backlog and not leave and not self._closed:
                item = next(iter(host.backlog))
                del host.backlog[item]
                return item
            host.active -= 1
            self._others -= self._favoured is not None and name != self._favoured
            if not host.active and not host.backlog:
                del self._hosts[name]
            return None
