"""The client of the shim: pages, failures, and event streams that break off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from ourvidz.cli import shim as shim_module
from ourvidz.cli.shim import Shim, ShimError


class FakeShim(BaseHTTPRequestHandler):
    """Serves one page, one job, and its event stream in two parts: the first breaks off without a `done`."""

    resumed_after: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        bodies = {"/page": b"a page", "/text": b"no JSON", "/jobs/job-1": b'{"status": "processing"}'}
        if self.path == "/jobs/job-1/events":
            self.resumed_after.append(self.headers["Last-Event-ID"])
            first = b'id: 1-0\nevent: progress\ndata: {"progress": 40}\n\n'
            last = b'id: 2-0\nevent: done\ndata: {"status": "completed"}\n\n'
            self._respond(200, first if len(self.resumed_after) == 1 else last)
        elif self.path == "/private":
            self._respond(401, b'{"code": "UNAUTHORIZED", "detail": "no key"}')
        else:
            self._respond(200 if self.path in bodies else 404, bodies.get(self.path, b""))

    def _respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no access log."""


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    """A client of a running fake shim."""
    FakeShim.resumed_after = []
    monkeypatch.setattr(shim_module, "RECONNECT_DELAY_S", 0.0)
    with HTTPServer(("127.0.0.1", 0), FakeShim) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Shim(f"http://127.0.0.1:{server.server_address[1]}", None)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "exists"), [("/page", True), ("/private", True), ("/studio", False)])
def test_a_page_exists_unless_the_shim_answers_404(shim: Shim, path: str, exists: bool) -> None:
    """`ourvidz up` prints the URL of `/studio` only if the shim serves it; a page may require a key."""
    assert shim.has_page(path) is exists


def test_an_unreachable_shim_has_no_pages(unused_port: int) -> None:
    """Without a response nothing is known to be served."""
    assert Shim(f"http://127.0.0.1:{unused_port}", None).has_page("/page") is False


def test_a_problem_document_becomes_an_error_with_status_and_code(shim: Shim) -> None:
    """Callers branch on both; the message is one line."""
    with pytest.raises(ShimError, match="UNAUTHORIZED: no key") as caught:
        shim.get("/private")
    assert (caught.value.status, caught.value.code) == (401, "UNAUTHORIZED")


def test_a_response_without_json_is_an_error(shim: Shim) -> None:
    """Another server listens at that URL."""
    with pytest.raises(ShimError, match="no OurVidz shim"):
        shim.get("/text")


def test_a_broken_event_stream_is_resumed_after_the_last_event(shim: Shim) -> None:
    """No event is lost or repeated."""
    events = list(shim.events("job-1"))
    assert [(event.id, event.kind) for event in events] == [("1-0", "progress"), ("2-0", "done")]
    assert FakeShim.resumed_after == [None, "1-0"]
