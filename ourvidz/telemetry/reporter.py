"""Posts telemetry documents in batches, from a thread that nothing waits for."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from ourvidz import __version__, log
from ourvidz.net.client import HttpClient, HttpResponse, RequestFailure
from ourvidz.service_key import key_headers

TIMEOUT_S = 10.0
"""Deadline of one request."""
RETRIED_STATUSES = frozenset({408, 425, 429})
"""The retried ones below 500; all from 500 on are retried too."""

Kind = Literal["worker_metrics", "completion_stats"]
Post = Callable[[bytes], HttpResponse | RequestFailure]

_log = log.get(__name__)


class MetricsReporter:
    """Sends documents to a receiver, in batches of at most `batch_size`, each with what has come within
    `interval_s` of its first document.

    At most `capacity` documents wait: beyond that the oldest are dropped and counted, and so is a batch that
    the receiver refuses. A batch that cannot be delivered is sent again after 1, 2, 4 … seconds, at most
    `max_delay_s`. Safe to share between threads.
    """

    def __init__(
        self,
        post: Post,
        *,
        capacity: int = 1000,
        batch_size: int = 100,
        interval_s: float = 2.0,
        max_delay_s: float = 60.0,
    ) -> None:
        self._post = post
        self._capacity = capacity
        self._batch_size = batch_size
        self._interval_s = interval_s
        self._max_delay_s = max_delay_s
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Kind, dict[str, Any]]] = deque()
        self._sent = self._dropped = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, kind: Kind, document: dict[str, Any]) -> None:
        """Send a document later. Returns at once; raises nothing."""
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append((kind, document))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        """How many documents were `sent`, and how many `dropped`."""
        with self._changed:
            return {"sent": self._sent, "dropped": self._dropped}

    def close(self, timeout_s: float) -> None:
        """Send what waits, once, and end the thread, within `timeout_s`."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped.is_set())
                if not self._waiting:
                    return
            self._stopped.wait(self._interval_s)
            with self._changed:
                count = min(self._batch_size, len(self._waiting))
                batch = [self._waiting.popleft() for _ in range(count)]
            sent = self._deliver(batch)
            with self._changed:
                self._sent += len(batch) if sent else 0
                self._dropped += 0 if sent else len(batch)
                self._changed.notify_all()

    def _deliver(self, batch: list[tuple[Kind, dict[str, Any]]]) -> bool:
        """Post a batch until the receiver takes or refuses it, or this reporter is closed. Returns whether it
        was taken."""
        delay_s = min(1.0, self._max_delay_s)
        try:
            body = _encode(batch)
        except (TypeError, ValueError):
            _log.exception("metrics_not_written", documents=len(batch))
            return False
        while True:
            answer = self._post(body)
            status = answer.status if isinstance(answer, HttpResponse) else None
            if status is not None and 200 <= status < 300:
                return True
            reason = f"HTTP {status}" if isinstance(answer, HttpResponse) else answer.reason
            is_refused = status is not None and status < 500 and status not in RETRIED_STATUSES
            if is_refused or self._stopped.is_set():
                _log.warning("metrics_dropped", documents=len(batch), error=reason)
                return False
            _log.info("metrics_postponed", documents=len(batch), error=reason, due_in_s=delay_s)
            self._stopped.wait(delay_s)
            delay_s = min(2 * delay_s, self._max_delay_s)


def post_to(url: str, key: str | None) -> Post:
    """Return the function that posts a body to a URL, authenticated with `key` if there is one."""
    client = HttpClient(timeout_s=TIMEOUT_S, keep_alive=True)
    headers = {"Content-Type": "application/json", "User-Agent": f"ourvidz/{__version__}"}
    headers |= key_headers(key) if key else {}
    return lambda body: client.post(url, body=body, headers=headers)


def _encode(batch: list[tuple[Kind, dict[str, Any]]]) -> bytes:
    """The body of a batch: the documents of each kind in the order in which they were added."""
    kinds: tuple[Kind, ...] = ("worker_metrics", "completion_stats")
    document = {kind: [each for its, each in batch if its == kind] for kind in kinds}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "replace"
    )
