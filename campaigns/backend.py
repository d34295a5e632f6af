"""A backend that keeps the table of the functions that register workers, and answers as they do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

CHAT, OTHERS = "register-chat-worker", "update-worker-url"

Failure = Literal["refused", "lost", "late"]
"""What goes wrong with a request: it is answered with 503; it is carried out without an answer; it is carried
out when the sender has given it up."""


@dataclass
class Backend:
    """The two functions that register workers, with what they keep.

    `cells` has one URL for each function, as those in the field have: the last one that was sent. `active`
    has a record for each worker type and URL, as a function has that knows `status` and `sequence`. `fault`
    decides what goes wrong with a request. `down_shims` are URLs whose `/health` does not answer.
    """

    fault: Callable[[], Failure | None] = lambda: None
    late_s: float = 0.0
    down_shims: set[str] = field(default_factory=set)
    cells: dict[str, str] = field(default_factory=dict)
    sequences: dict[tuple[str, str], int] = field(default_factory=dict)
    active: set[tuple[str, str]] = field(default_factory=set)
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, path: str, headers: dict[str, str], body: bytes) -> int | None:
        """Carry a request out. The status of the answer; None closes the connection without one."""
        with self.lock:
            fault = self.fault()
        if fault == "refused":
            return 503
        if fault == "late":
            time.sleep(self.late_s)
        document = json.loads(body)
        function = path.removeprefix("/functions/v1/")
        with self.lock:
            self.requests.append((function, headers, document))
            self._keep_record(document)
            status = self._set_cell(function, document)
        return None if fault else status

    def _set_cell(self, function: str, document: dict[str, Any]) -> int:
        url = document["worker_url"]
        if not url or (function == OTHERS and url in self.down_shims):
            return 400
        self.cells[function] = url
        return 200

    def _keep_record(self, document: dict[str, Any]) -> None:
        name = (document["worker_type"], document["worker_url"] or document["former_worker_url"])
        if document["sequence"] >= self.sequences.get(name, 0):
            self.sequences[name] = document["sequence"]
            (self.active.discard if document["status"] == "gone" else self.active.add)(name)


@contextmanager
def serve() -> Iterator[Backend]:
    """Serve a backend on a free port of loopback inside this context."""
    backend = Backend()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = backend.handle(self.path, headers, body)
            if status is None:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the output readable."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    backend.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield backend
    finally:
        server.shutdown()
        server.server_close()
