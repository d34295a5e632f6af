"""Texts that a server on another machine writes: what is one text's own does not end the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import InvalidParameters, WorkerUnavailable
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.jobs.outcome import Outcome
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import Fetcher
from ourvidz.references.resolve import Limits, References
from ourvidz.safety.gate import Gate, Terms
from ourvidz.settings import load_settings
from ourvidz.storage.local import LocalStore
from ourvidz.wiring.models import build
from ourvidz.workflows.chat import converse
from ourvidz.workflows.services import Services


class _Handler(BaseHTTPRequestHandler):
    """Says "a hill"; refuses long texts, and breaks off where it is asked about clouds."""

    def log_message(self, *_: object) -> None:
        """Nothing to a test's output."""

    def do_GET(self) -> None:
        self._answer(200, b'{"data": [{"id": "large"}]}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["max_tokens"] > 100:
            self._answer(400, b'{"error": {"message": "maximum context length"}}')
            return
        usage = b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}'
        end = b"" if "cloud" in str(asked["messages"]) else b"data: " + usage + b"\n\ndata: [DONE]\n\n"
        said = b'{"choices": [{"delta": {"content": "a hill"}, "finish_reason": %s}]}'
        self._answer(200, b"data: " + said % (b'"stop"' if end else b"null") + b"\n\n" + end)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)


@dataclass
class Heard:
    """A run that nobody stops."""

    pieces: list[str] = field(default_factory=list)

    def step(self, done: int, total: int) -> None:
        pass

    def say(self, text: str, done: int, total: int) -> bool:
        self.pieces.append(text)
        return True


@dataclass
class Turn:
    """One text job and what became of it."""

    job: ChatJob
    run: Any = field(default_factory=Heard)
    outcome: Outcome | None = None
    error: Exception | None = None

    def end(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def fail(self, error: Exception) -> None:
        self.error = error


class JobSource:
    """Those who join at once."""

    def __init__(self, *turns: Turn) -> None:
        self._turns = list(turns)

    def joining(self, first: ChatJob, *, present: int) -> list[Turn]:
        joined, self._turns = self._turns, []
        return joined


@pytest.fixture
def use(tmp_path: Path) -> Iterator[Services]:
    """Services whose instruct model is on a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    models = build(load_settings(_env_file=None, OURVIDZ_QWEN_INSTRUCT_URL=url), "chat")
    store = LocalStore(tmp_path / "assets")
    limits = Limits(max_bytes=1 << 20, max_pixels=1 << 20)
    references = References(Fetcher(EgressPolicy(), timeout_s=1.0, max_bytes=1 << 20).get, store.get, limits)
    gate = Gate(Terms(minor=frozenset({"quokka"}), sexual=frozenset({"marmalade"})))
    yield Services(models=models, store=store, gate=gate, references=references)
    server.shutdown()
    server.server_close()
    thread.join()


def turn(name: str, text: str, **changed: Any) -> Turn:
    fields: dict[str, Any] = {"type": "chat_conversation", "expected_time": 15, "max_tokens": 48, "seed": 1}
    return Turn(ChatJob(id=name, messages=(Message(role="user", content=text),), **(fields | changed)))


def test_a_text_that_its_server_refuses_or_drops_fails_alone(use: Services) -> None:
    """Whose text is too long hears so; whose text broke off may try again; the others are answered."""
    whole, late = turn("whole", "Hills?"), turn("late", "Hills?")
    long, dropped = turn("long", "Hills?", max_tokens=512), turn("dropped", "A cloud?")
    converse(whole, JobSource(long, dropped, late), use)
    for one in (whole, late):
        assert one.error is None
        assert one.outcome is not None
        told = one.outcome.metadata
        assert one.outcome.assets[0].metadata["text"] == "a hill"
        assert (told["prompt_tokens"], told["tokens_generated"]) == (5, 2)
        assert (told["finish_reason"], told["inference_engine"]) == ("stop", "openai")
        assert told["model_name"] == "large"
    assert isinstance(long.error, InvalidParameters)
    assert isinstance(dropped.error, WorkerUnavailable)
