"""Capacity for new jobs: memory of the Redis server, disk of an embedded one, number of queued jobs."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ourvidz.errors import CapacityExceeded, WorkerUnavailable

if TYPE_CHECKING:
    from ourvidz.ledger.store import Ledger
    from ourvidz.records.usage import Usage

CACHED_S = 1.0
"""How long one measurement is used: submissions of a second overshoot a limit at most."""
MEMORY_SHARE = 0.8
"""Share of the server's memory limit up to which jobs are accepted. The rest is for what they still write."""
BYTES_PER_JOB = 8 * 1024
"""What a job that has not ended may still add: its events, its stream, its outcome."""
MIN_DISK_BYTES = 64 << 20
"""Free space below which jobs are refused, where the server's data is on this machine."""
RETRY_AFTER_S = 30.0


class Capacity:
    """The capacity for new jobs, measured at most once a second by one process.

    `max_queued`: queued jobs of all queues together. `folder`: where an embedded server and local storage
    write; None for a server elsewhere.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        max_queued: int,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._max_queued = max_queued
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._measured_at: float | None = None
        self._full: list[str] = []

    def refusal(self) -> CapacityExceeded | None:
        """Return the error for a new job. None if there is capacity, or the server cannot be reached: then
        the submission itself will fail."""
        with self._lock:
            now = self._clock()
            if self._measured_at is None or now - self._measured_at >= CACHED_S:
                self._full = self._measure()
                self._measured_at = self._clock()
            full = self._full
        if not full:
            return None
        reasons = {
            "queue": f"{self._max_queued} jobs are queued",
            "memory": "the job store is almost out of memory",
            "disk": "the disk of the job store is almost full",
        }
        message = f"No new jobs are accepted: {' and '.join(reasons[resource] for resource in full)}."
        return CapacityExceeded(message, kind=full[0], retry_after_s=RETRY_AFTER_S)

    def headroom(self) -> Mapping[str, float]:
        """Return the capacity that is left by resource (`queue`, `memory`, `disk`): 1 is all of it, at 0 jobs
        are refused. A resource without a limit is left out. Raises `WorkerUnavailable`."""
        usage = self._ledger.usage()
        shares = {"queue": 1 - usage.queued / self._max_queued}
        if usage.memory_limit:
            shares["memory"] = 1 - _memory(usage) / (MEMORY_SHARE * usage.memory_limit)
        if self._folder is not None and self._folder.exists():
            disk = shutil.disk_usage(self._folder)
            shares["disk"] = (disk.free - MIN_DISK_BYTES) / max(1, disk.total - MIN_DISK_BYTES)
        return {resource: max(0.0, share) for resource, share in shares.items()}

    def _measure(self) -> list[str]:
        """Return the resources of which nothing is left."""
        try:
            return [resource for resource, share in self.headroom().items() if share <= 0]
        except (WorkerUnavailable, OSError):
            return []


def _memory(usage: Usage) -> int:
    """The memory in use, with what the jobs that have not ended will add."""
    return usage.memory_used + usage.unfinished * BYTES_PER_JOB
