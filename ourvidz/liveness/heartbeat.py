"""The heartbeat of a worker: a ledger row rewritten every few seconds by the process that does the work."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from ourvidz import __version__, log
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Worker

BEATS_PER_PRESENCE = 5
"""Heartbeats sent within the time after which a silent worker counts as offline."""

State = Literal["starting", "failed", "idle", "busy"]
"""`failed`: the worker could not load its models."""
_log = log.get(__name__)


class Heartbeat:
    """Sends the heartbeats of one worker from a thread of its own, from `start` to `stop`.

    `presence_s` is the time without a heartbeat after which the ledger calls the worker offline. A ledger
    that cannot be reached is logged and never raised.
    """

    def __init__(self, ledger: Ledger, *, worker_id: str, family: str, queue: str, pid: int, gpu: str | None,
                 presence_s: float, broker_prefix: str = "") -> None:  # fmt: skip
        self._ledger = ledger
        self._interval_s = presence_s / BEATS_PER_PRESENCE
        self._lock = threading.Lock()
        self._stopped = threading.Event()
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
            broker_prefix=broker_prefix,
        )
        self._details: Callable[[], dict[str, Any]] = dict
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Send the first heartbeat and start the thread."""
        self._send()
        self._thread.start()

    def add_details(self, read: Callable[[], dict[str, Any]]) -> None:
        """Let each heartbeat contain the details that `read` returns. It must be quick and raise nothing."""
        self._details = read

    def update(self, state: State, *, models: tuple[str, ...] | None = None, **detail: Any) -> None:
        """Change the worker's state, its loaded models and details, and send a heartbeat at once. A detail
        that is None is removed."""
        with self._lock:
            merged = self._worker.detail | detail
            details = {name: value for name, value in merged.items() if value is not None}
            changes: dict[str, Any] = {"state": state, "detail": details}
            if models is not None:
                changes["models"] = models
            self._worker = replace(self._worker, **changes)
        self._send()

    def set_state(self, state: State) -> None:
        """Change the worker's state for the next regular heartbeat, without a round trip. A failed worker
        stays failed until `update`."""
        with self._lock:
            if self._worker.state != "failed":
                self._worker = replace(self._worker, state=state)

    @property
    def state(self) -> str:
        """The state that the next heartbeat reports."""
        return self._worker.state

    def stop(self) -> None:
        """Stop the thread and mark the worker as offline."""
        self._stopped.set()
        try:
            self._ledger.mark_offline(self._worker.id)
        except WorkerUnavailable:
            _log.warning("goodbye_not_heard", worker_id=self._worker.id)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self._send()
            except Exception:  # noqa: BLE001  if this thread ended, a live worker would be shown as offline
                _log.exception("beat_failed", worker_id=self._worker.id)

    def _send(self) -> None:
        try:
            worker = self._worker
            self._ledger.heartbeat(replace(worker, detail=worker.detail | self._details()))
        except WorkerUnavailable:
            _log.warning("beat_not_heard", worker_id=self._worker.id)
