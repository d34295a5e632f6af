"""Whether anybody has been at work for a queue lately."""

from __future__ import annotations

import time
from collections.abc import Callable

from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger

RETRY_S = 60.0


class WorkerAvailability:
    """Answers for one shim. The time without a worker is counted from the shim's start at the earliest, so
    that jobs are accepted while everything restarts; the ledger is asked only when its last answer no
    longer settles the question."""

    def __init__(self, grace_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace_s = grace_s
        self._clock = clock
        self._settled_until: dict[str, float] = {}
        self._started = clock()

    def missing(self, queue: str, ledger: Ledger) -> bool:
        """Whether no worker of a queue was seen for longer than the grace time."""
        now = self._clock()
        if now < self._settled_until.get(queue, self._started + self._grace_s):
            return False
        seen_at = ledger.queue_seen_at(queue)
        if seen_at is None:
            return True
        self._settled_until[queue] = now + self._grace_s - max(0.0, ledger.now() - seen_at)
        return now >= self._settled_until[queue]

    def refusal(self, queue: str) -> WorkerUnavailable:
        """What a submission to an unattended queue is told."""
        return WorkerUnavailable(
            f"No worker of {queue} was seen for {self._grace_s:g} seconds.",
            field="type",
            retry_after_s=RETRY_S,
        )
