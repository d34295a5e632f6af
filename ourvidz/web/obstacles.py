"""Why no worker can claim the jobs of a queue, as callers that wait for one are told."""

from __future__ import annotations

import threading
import time

from ourvidz.ledger.store import Ledger

KEPT_S = 1.0
"""How long an answer of the ledger serves all callers: each of thousands that wait asks every few seconds."""


class QueueObstacles:
    """What keeps queued jobs from being claimed, by queue. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[tuple[Ledger, str], tuple[float, str | None]] = {}

    def find(self, ledger: Ledger, queue: str) -> str | None:
        """Why no worker can claim a job of the queue; None when one can. Up to `KEPT_S` old."""
        with self._lock:
            asked_at, answer = self._answers.get((ledger, queue), (0.0, None))
            if time.monotonic() - asked_at >= KEPT_S:
                answer = _read(ledger, queue)
                self._answers = {(ledger, queue): (time.monotonic(), answer)}
        return answer


def _read(ledger: Ledger, queue: str) -> str | None:
    if ledger.active_workers(queue=queue):
        return None
    paused = queue in ledger.paused_queues()
    return f"{queue} is paused." if paused else f"No worker of {queue} is at work."
