"""The periodic status line of a GPU worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ourvidz import log

_log = log.get(__name__)


class StatusLine:
    """Logs what `read` returns every `period_s` seconds, from a thread of its own: a GPU that hangs stops
    these lines, and nothing else."""

    def __init__(self, read: Callable[[], Mapping[str, Any]], *, period_s: float) -> None:
        self._read = read
        self._period_s = period_s
        self._started_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status-line", daemon=True)

    def start(self) -> None:
        """Start the thread; the first line comes after one period."""
        self._thread.start()

    def stop(self) -> None:
        """Write no further line. Returns at once."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            try:
                uptime_s = round(time.monotonic() - self._started_at, 1)
                _log.info("worker_status", **self._read(), uptime_s=uptime_s)
            except Exception:  # noqa: BLE001  the next line may succeed
                _log.exception("worker_status_unknown")
