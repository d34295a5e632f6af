"""Takes announced jobs from the outbox and delivers their callbacks on threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from ourvidz import log
from ourvidz.callbacks.delivery import CallbackSender
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import ReadyJob

THREADS = 16
"""Deliveries of one process at the same time."""
POLL_S = 1.0
"""How often jobs are looked for whose event has become due by time, and the longest wait for one."""
RECONNECT_DELAY_S = 1.0

_log = log.get(__name__)


class OutboxConsumer:
    """Delivers what is due, from `start` to `stop`. Any number of processes may share an outbox.

    One thread waits for announced jobs, as long as one of `threads` is free to deliver the next. `worker_id`
    names this process: it takes nothing while an operator has it drained. Every `poll_s` it looks for what
    became due by time. `beat` is called at least every few seconds by the waiting thread. A ledger that
    cannot be reached is logged and tried again.
    """

    def __init__(
        self,
        ledger: Ledger,
        sender: CallbackSender,
        *,
        worker_id: str,
        threads: int = THREADS,
        poll_s: float = POLL_S,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._sender = sender
        self._worker_id = worker_id
        self._limit = threads
        self._poll_s = poll_s
        self._beat = beat
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._busy = 0
        self._resumed = False
        self._polled_at: float | None = None
        self._jobs: SimpleQueue[ReadyJob | None] = SimpleQueue()
        """Jobs to deliver; None ends the thread that takes it."""
        self._threads = [
            threading.Thread(target=self._wait_for_jobs, name="outbox", daemon=True),
            *(
                threading.Thread(target=self._deliver, name=f"delivery-{n}", daemon=True)
                for n in range(threads)
            ),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no further delivery, and end the threads. Returns at once."""
        self._sender.stop()
        with self._changed:
            if not self._stopped.is_set():
                self._stopped.set()
                for _ in range(self._limit):
                    self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait until the threads have ended after `stop`. Returns whether they have in time."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait for the deliveries in progress. Returns whether they have ended in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy == 0, timeout_s)

    def _wait_for_jobs(self) -> None:
        while not self._stopped.is_set():
            self._beat()
            try:
                self._take_one()
            except WorkerUnavailable as error:
                _log.warning("outbox_not_read", reason=error.message)
                self._stopped.wait(RECONNECT_DELAY_S)
            except Exception:  # noqa: BLE001  a thread that ends here would end all deliveries
                _log.exception("outbox_not_read")
                self._stopped.wait(RECONNECT_DELAY_S)

    def _take_one(self) -> None:
        """Wait for a free thread and an announced job, each for a second at most."""
        if self._is_drained():
            self._stopped.wait(self._poll_s)
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self._busy < self._limit, self._poll_s):
                return
        ready = self._ledger.take_ready(wait_s=self._poll_s)
        if ready is None:
            return
        with self._changed:
            if self._stopped.is_set():
                # Taken and not begun: it is due, so another process announces it within a second.
                return
            self._busy += 1
            self._jobs.put(ready)

    def _is_drained(self) -> bool:
        """Announce what has become due, once a second. Returns whether this process is drained."""
        if not self._resumed:
            # A restart ends a drain.
            self._ledger.set_draining(self._worker_id, False)
            self._resumed = True
        now = time.monotonic()
        if self._polled_at is not None and now - self._polled_at < self._poll_s:
            return False
        if not self._ledger.announce_due(self._worker_id):
            return True
        self._polled_at = now
        return False

    def _deliver(self) -> None:
        while True:
            ready = self._jobs.get()
            if ready is None:
                return
            try:
                self._sender.deliver_ready(ready)
            except WorkerUnavailable as error:
                _log.warning("delivery_interrupted", job_id=ready.job_id, reason=error.message)
            except Exception:  # noqa: BLE001  the thread delivers the next one
                _log.exception("delivery_failed", job_id=ready.job_id)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()
