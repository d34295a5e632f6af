"""A real receiver, a clock that tests move, and jobs to tell of."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ourvidz.jobs.job import ImageJob
from ourvidz.ledger.record import OutboxEvent

PATIENCE_S = 10.0


@dataclass
class Post:
    """One request a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """An HTTP server that answers from a script, then 200. `hold` keeps it from answering while it is set."""

    port: int
    script: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)
    under_way: int = 0
    most_under_way: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/functions/v1/job-callback"

    @property
    def statuses(self) -> list[tuple[str, str]]:
        """What was told of which job, in order."""
        return [(post.payload["job_id"], post.payload["status"]) for post in self.posts]

    def wait_for(self, posts: int) -> None:
        """Until so many posts have arrived."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.posts) >= posts, PATIENCE_S), self.posts

    def take(self, post: Post) -> tuple[int, dict[str, str]]:
        with self.changed:
            self.posts.append(post)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            answer = self.script.pop(0) if self.script else (200, {})
            self.changed.notify_all()
        if self.hold.is_set():
            self.released.wait(PATIENCE_S)
        with self.changed:
            self.under_way -= 1
        return answer


def _handler(take: Callable[[Post], tuple[int, dict[str, str]]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = take(Post(self.path, dict(self.headers.items()), body))
            try:
                self.send_response(status)
                for name, value in {"Content-Length": "2", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"{}")
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Keep test output quiet."""

    return Handler


@pytest.fixture
def make_receiver() -> Iterator[Callable[[], Receiver]]:
    """Start real HTTP servers on free ports."""
    servers: list[ThreadingHTTPServer] = []
    made: list[Receiver] = []

    def make() -> Receiver:
        receiver = Receiver(port=0)
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver.take))
        server.daemon_threads = True
        receiver.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        made.append(receiver)
        return receiver

    yield make
    for receiver in made:
        receiver.released.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver(make_receiver: Callable[[], Receiver]) -> Receiver:
    """One of them."""
    return make_receiver()


@dataclass
class Clock:
    """Unix seconds that pass when a test says so."""

    at: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at

    def pass_(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def clock() -> Clock:
    """The ledger's clock."""
    return Clock()


@pytest.fixture
def make_job() -> Callable[..., ImageJob]:
    """An image job; anything may be chosen."""

    def make(id: str = "job-1", **chosen: Any) -> ImageJob:
        given: dict[str, Any] = {
            "id": id,
            "type": "sdxl_image_high",
            "user_id": "user-1",
            "expected_time": 42.0,
            "prompt": "a lighthouse on a hill",
            "steps": 25,
            "guidance_scale": 7.5,
            "width": 64,
            "height": 64,
            "seed": 12345,
        }
        return ImageJob(**given | chosen)

    return make


@pytest.fixture
def make_event(make_job: Callable[..., ImageJob]) -> Callable[..., OutboxEvent]:
    """An outbox row of an image job; anything may be chosen."""

    def make(**chosen: Any) -> OutboxEvent:
        given: dict[str, Any] = {
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
        return OutboxEvent(**given | chosen)

    return make
