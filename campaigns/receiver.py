"""A callback receiver that counts what it gets."""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class CallbackReceiver:
    """Accepts every callback on a free port of `address`; use it as a context manager.

    `endings` maps the id of a job to the ids of its terminal events and their statuses. Two deliveries of one
    event count once, as the event id is the receiver's idempotency key.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address
        self.endings: dict[str, dict[str, str]] = defaultdict(dict)
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.handle(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the output of the campaign readable."""

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True

    @property
    def host(self) -> str:
        """Address and port."""
        return f"{self._address}:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Where callbacks are to be sent."""
        return f"http://{self.host}/callback"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Record a delivery and answer it."""
        self.add(json.loads(body), request.headers["webhook-id"])
        request.send_response(204)
        request.end_headers()

    def add(self, payload: dict[str, Any], event_id: str) -> None:
        """Record one delivery."""
        if payload["status"] == "processing":
            return
        with self._changed:
            self.endings[payload["job_id"]][event_id] = payload["status"]
            self._changed.notify_all()

    def wait_for(self, job_ids: list[str], *, within_s: float) -> list[str]:
        """Wait until every job has ended, at most `within_s`. Returns the ids of those that have not."""

        def missing() -> list[str]:
            return [job_id for job_id in job_ids if not self.endings.get(job_id)]

        with self._changed:
            self._changed.wait_for(lambda: not missing(), timeout=within_s)
            return missing()


class UnreliableReceiver(CallbackReceiver):
    """Answers most deliveries and fails the others: a server error, no answer until the sender gives up, a
    connection closed after the body was read, with the delivery recorded or not.

    While `refusing` is set, every connection is closed at once. While `healthy` is set, nothing fails.
    """

    FAILURES = ("server error", "hangs", "closes", "closes after recording")

    def __init__(self, *, failing: float, hang_s: float, seed: int) -> None:
        super().__init__()
        self.refusing = threading.Event()
        self.healthy = threading.Event()
        self._failing = failing
        self._hang_s = hang_s
        self._random = random.Random(seed)

    def handle(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Record and answer a delivery, or fail in one of the ways."""
        if self.refusing.is_set():
            request.connection.close()
            return
        fails = not self.healthy.is_set() and self._random.random() < self._failing
        failure = self._random.choice(self.FAILURES) if fails else None
        if failure is None:
            super().handle(request, body)
        elif failure == "server error":
            request.send_error(500)
        elif failure == "hangs":
            self.healthy.wait(self._hang_s)
            request.connection.close()
        else:
            if failure == "closes after recording":
                self.add(json.loads(body), request.headers["webhook-id"])
            request.connection.close()
