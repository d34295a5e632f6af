"""Saying that a worker is here: a beat every few seconds from the process that does the work."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from typing import Any, Literal

from ourvidz import __version__, log
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.record import Worker
from ourvidz.ledger.store import Ledger

BEATS_PER_PRESENCE = 5

State = Literal["starting", "idle", "busy"]
_log = log.get(__name__)


class Presence:
    """One worker's beats. `change` beats at once, `note` with the next regular beat; until `close`."""

    def __init__(self, ledger: Ledger, *, worker_id: str, family: str, queue: str, pid: int, gpu: str | None,
                 presence_s: float) -> None:  # fmt: skip
        self._ledger = ledger
        self._pause_s = presence_s / BEATS_PER_PRESENCE
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._worker = Worker(
            id=worker_id,
            family=family,
            queue=queue,
            host=socket.gethostname(),
            pid=pid,
            gpu=gpu,
            state="starting",
            models=(),
            version=__version__,
            started_at=time.time(),
            seen_at=0.0,
        )
        self._thread = threading.Thread(target=self._repeat, name="presence", daemon=True)

    def open(self) -> None:
        """Start beating."""
        self._beat()
        self._thread.start()

    def change(self, state: State, *, models: tuple[str, ...] | None = None, **detail: Any) -> None:
        """Say what this worker is doing now."""
        with self._lock:
            changed: dict[str, Any] = {"state": state, "detail": self._worker.detail | detail}
            if models is not None:
                changed["models"] = models
            self._worker = replace(self._worker, **changed)
        self._beat()

    def note(self, state: State) -> None:
        """Remember what this worker is doing without a round trip: jobs may come and go fast."""
        with self._lock:
            self._worker = replace(self._worker, state=state)

    def close(self) -> None:
        """Stop beating and say goodbye."""
        self._over.set()
        try:
            self._ledger.leave(self._worker.id)
        except WorkerUnavailable:
            _log.warning("goodbye_not_heard", worker_id=self._worker.id)

    def _repeat(self) -> None:
        while not self._over.wait(self._pause_s):
            try:
                self._beat()
            except Exception:  # noqa: BLE001  a thread that ends here would make a live worker look dead
                _log.exception("beat_failed", worker_id=self._worker.id)

    def _beat(self) -> None:
        try:
            self._ledger.beat(self._worker)
        except WorkerUnavailable:
            _log.warning("beat_not_heard", worker_id=self._worker.id)
