"""Whether a queue has had a live worker within the grace period."""

from __future__ import annotations

import time
from collections.abc import Callable

from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger

RETRY_AFTER_S = 60.0


class WorkerAvailability:
    """Availability of workers per queue, as seen by one process.

    The grace period starts when this object is created at the earliest, so that jobs are accepted while all
    processes restart. `queue_seen_at` is cached per queue: the ledger is asked again only when its last
    answer is older than the grace period.
    """

    def __init__(
        self, ledger: Ledger, grace_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._grace_s = grace_s
        self._clock = clock
        self._available_until: dict[str, float] = {}
        self._started = clock()

    def is_missing(self, queue: str) -> bool:
        """Return whether no worker of the queue sent a heartbeat within the grace period."""
        now = self._clock()
        if now < self._available_until.get(queue, self._started + self._grace_s):
            return False
        seen_at = self._ledger.queue_seen_at(queue)
        if seen_at is None:
            return True
        self._available_until[queue] = now + self._grace_s - max(0.0, self._ledger.now() - seen_at)
        return now >= self._available_until[queue]

    def refusal(self, queue: str) -> WorkerUnavailable:
        """Return the error for a submission to a queue without workers."""
        return WorkerUnavailable(
            f"No worker of {queue} was seen for {self._grace_s:g} seconds.",
            field="type",
            retry_after_s=RETRY_AFTER_S,
        )
