"""The writer of a process: requests append to a queue, a thread writes, syncs and signs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ourvidz import log
from ourvidz.auditing.logfile import LogFile, now_text

MAX_WAITING = 10_000
"""Entries that wait while the disk refuses them; later ones are counted, and their number is an entry."""
CHECKPOINT_S = 300.0
"""The longest time for which a synced entry has no checkpoint."""
RETRY_S = 1.0
CLOSE_S = 10.0
_log = log.get(__name__)


class AuditWriter:
    """Appends entries to a log of this process, which is opened with the first one.

    `open_log` opens it. An entry is written at once and durable after `sync_s` seconds; it has a checkpoint
    `checkpoint_s` after that at the latest. Threads may share it.
    """

    def __init__(
        self, open_log: Callable[[], LogFile], *, sync_s: float = 1.0, checkpoint_s: float = CHECKPOINT_S
    ) -> None:
        self._open_log = open_log
        self._sync_s, self._checkpoint_s = sync_s, checkpoint_s
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._log: LogFile | None = None
        self._sync_due: float | None = None
        self._signed_at = 0.0

    def append(self, event: str, **fields: Any) -> None:
        """Append an entry. Never waits for the disk, and never fails."""
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._lost += 1
                return
            self._waiting.append({"at": now_text(), "event": event, **fields})
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Write, sync and sign everything, and release the log. An entry after this opens it again."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._closing = thread is not None
        if thread is not None:
            self._wake.set()
            thread.join(CLOSE_S)

    def _run(self) -> None:
        failed = False
        while True:
            self._wake.wait(RETRY_S if failed else self._pause_s())
            self._wake.clear()
            closing = self._closing
            try:
                self._write()
                self._sync(closing)
                failed = False
            except OSError as error:
                if not failed:
                    _log.error("audit_write_failed", reason=str(error))
                failed = True
            if closing:
                self._closing = False
                return

    def _pause_s(self) -> float | None:
        """How long nothing is to be done without another entry."""
        if self._sync_due is not None:
            return max(0.0, self._sync_due - time.monotonic())
        if self._log is not None and self._log.unsigned:
            return max(0.0, self._signed_at + self._checkpoint_s - time.monotonic())
        return None

    def _write(self) -> None:
        with self._lock:
            batch, lost = list(self._waiting), self._lost
        if not batch and not lost:
            return
        if self._log is None:
            self._log = self._open_log()
            # A log has a checkpoint from its first moment on: without one it could be replaced.
            self._log.sync()
            self._log.checkpoint()
            self._signed_at = time.monotonic()
        if lost:
            batch.append({"at": now_text(), "event": "entries_lost", "count": lost})
        self._log.append(batch)
        with self._lock:
            for _ in range(len(batch) - bool(lost)):
                self._waiting.popleft()
            self._lost -= lost
        if self._sync_due is None:
            self._sync_due = time.monotonic() + self._sync_s

    def _sync(self, closing: bool) -> None:
        if self._log is None:
            return
        if closing:
            log_file, self._log, self._sync_due = self._log, None, None
            log_file.close()
            return
        now = time.monotonic()
        if self._sync_due is not None and now >= self._sync_due:
            self._log.sync()
            self._sync_due = None
        if not self._log.unsigned:
            self._signed_at = now
        elif self._sync_due is None and now >= self._signed_at + self._checkpoint_s:
            self._log.checkpoint()
            self._signed_at = now
