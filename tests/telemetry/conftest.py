"""A receiver of metrics that answers, refuses or hangs, and jobs that have ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

PATIENCE_S = 20.0


@dataclass
class MetricsReceiver:
    """An HTTP server that answers with the next of `statuses`, then with 204. Requests wait for `released`
    while it is cleared."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The documents of a kind in the order in which they came."""
        return [document for body in self.bodies for document in body[kind]]

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is true; it is looked at after each request."""
        with self.changed:
            assert self.changed.wait_for(reached, PATIENCE_S), self.bodies


@pytest.fixture
def receiver() -> Iterator[MetricsReceiver]:
    made = MetricsReceiver()
    made.released.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with made.changed:
                made.bodies.append(body)
                made.headers.append({name.lower(): value for name, value in self.headers.items()})
                status = made.statuses.pop(0) if made.statuses else 204
                made.changed.notify_all()
            made.released.wait(PATIENCE_S)
            try:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Write nothing to the output of tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}/metrics"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    made.released.set()
    server.shutdown()
    server.server_close()
