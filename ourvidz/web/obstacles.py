"""Why no worker can claim the jobs of a queue, as callers that wait for one are told."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from ourvidz.ledger.store import Ledger

KEPT_S = 1.0
"""How long an answer of the ledger serves all callers: each of thousands that wait asks every few seconds."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps the queued jobs of a queue from being claimed; `reason` is None when nothing does."""

    reason: str | None
    read_at: float = field(default_factory=time.monotonic)


class QueueObstacles:
    """The last answers of the ledger, by queue. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[tuple[Ledger, str], Obstacle] = {}

    def recent(self, ledger: Ledger, queue: str) -> Obstacle | None:
        """The last answer, if it is at most `KEPT_S` old. Asks nobody."""
        answer = self._answers.get((ledger, queue))
        return answer if answer is not None and time.monotonic() - answer.read_at < KEPT_S else None

    def read(self, ledger: Ledger, queue: str) -> Obstacle:
        """A recent answer; one of many threads asks the ledger for it."""
        with self._lock:
            answer = self.recent(ledger, queue)
            if answer is None:
                answer = Obstacle(_reason(ledger, queue))
                self._answers = {(ledger, queue): answer}
        return answer


def _reason(ledger: Ledger, queue: str) -> str | None:
    if ledger.active_workers(queue=queue):
        return None
    paused = queue in ledger.paused_queues()
    return f"{queue} is paused." if paused else f"No worker of {queue} is at work."
