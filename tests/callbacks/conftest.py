"""HTTP receivers on loopback, a clock that tests advance, jobs and outbox events."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ourvidz.jobs.job import ImageJob
from ourvidz.records.record import OutboxEvent
from tests.factories import ManualClock, image_job

PATIENCE_S = 10.0


@dataclass
class Post:
    """One request that a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass
class Receiver:
    """An HTTP server. It answers each request with the next of `script`, then with 200.

    While `down` is set, it closes each connection without an answer and records nothing. While `hold` is set,
    requests wait for `released`. `max_active` is the largest number of concurrent requests so far.
    """

    port: int
    script: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    down: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)
    active: int = 0
    max_active: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/functions/v1/job-callback"

    @property
    def statuses(self) -> list[tuple[str, str]]:
        """Job id and status of each post, in order."""
        return [(post.payload["job_id"], post.payload["status"]) for post in self.posts]

    def wait_for(self, posts: int) -> None:
        """Wait until that many posts have arrived."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.posts) >= posts, PATIENCE_S), self.posts

    def handle(self, post: Post) -> tuple[int, dict[str, str]]:
        with self.changed:
            self.posts.append(post)
            self.active += 1
            self.max_active = max(self.max_active, self.active)
            answer = self.script.pop(0) if self.script else (200, {})
            self.changed.notify_all()
        if self.hold.is_set():
            self.released.wait(PATIENCE_S)
        with self.changed:
            self.active -= 1
        return answer


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.down.is_set():
                self.close_connection = True
                return
            status, headers = receiver.handle(Post(self.path, dict(self.headers.items()), body))
            try:
                self.send_response(status)
                for name, value in {"Content-Length": "2", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"{}")
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Write nothing to the output of tests."""

    return Handler


@pytest.fixture
def make_receiver() -> Iterator[Callable[[], Receiver]]:
    """Start receivers on free ports."""
    servers: list[ThreadingHTTPServer] = []
    receivers: list[Receiver] = []

    def make() -> Receiver:
        receiver = Receiver(port=0)
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver))
        server.daemon_threads = True
        receiver.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        receivers.append(receiver)
        return receiver

    yield make
    for receiver in receivers:
        receiver.released.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver(make_receiver: Callable[[], Receiver]) -> Receiver:
    """One receiver."""
    return make_receiver()


@pytest.fixture
def clock() -> ManualClock:
    """The ledger's clock."""
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def make_job() -> Callable[..., ImageJob]:
    """Make an image job; keyword arguments replace its fields."""

    def make(id: str = "job-1", **fields: Any) -> ImageJob:
        defaults: dict[str, Any] = {
            "type": "sdxl_image_high",
            "expected_time": 42.0,
            "prompt": "a lighthouse on a hill",
            "steps": 25,
            "guidance_scale": 7.5,
            "seed": 12345,
        }
        return image_job(id, **defaults | fields)

    return make


@pytest.fixture
def make_event(make_job: Callable[..., ImageJob]) -> Callable[..., OutboxEvent]:
    """Make an outbox event of an image job; keyword arguments replace its fields."""

    def make(**fields: Any) -> OutboxEvent:
        defaults: dict[str, Any] = {
            "event_id": "msg_0123456789abcdef",
            "job_id": "job-1",
            "run": 1,
            "sequence": 2,
            "kind": "processing",
            "attempt": 1,
            "at": 1_800_000_016.11,
            "queued_at": 1_800_000_000.0,
            "claimed_at": 1_800_000_000.01,
            "worker_id": "sdxl@host-gpu0",
            "callback_url": None,
            "callback_metadata": make_job().callback_metadata(),
            "outcome": None,
            "state": "pending",
            "due_at": 1_800_000_016.11,
            "deliveries": 1,
        }
        return OutboxEvent(**defaults | fields)

    return make
