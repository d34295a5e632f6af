"""The workflow of text jobs on a remote inference server: an error of one text does not end the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import InvalidParameters, WorkerUnavailable
from ourvidz.settings import load_settings
from ourvidz.wiring.models import build
from ourvidz.workflows.chat import run_text_batch
from ourvidz.workflows.services import Services
from tests import factories
from tests.factories import QueuedItems, RecordingItem


class _Handler(BaseHTTPRequestHandler):
    """Answers "a hill"; refuses long requests, and breaks the stream off for prompts about clouds."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._answer(200, b'{"data": [{"id": "large"}]}')

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["max_tokens"] > 100:
            self._answer(400, b'{"error": {"message": "maximum context length"}}')
            return
        usage = b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}'
        end = b"" if "cloud" in str(request["messages"]) else b"data: " + usage + b"\n\ndata: [DONE]\n\n"
        delta = b'{"choices": [{"delta": {"content": "a hill"}, "finish_reason": %s}]}'
        self._answer(200, b"data: " + delta % (b'"stop"' if end else b"null") + b"\n\n" + end)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Services whose instruct model is on a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    models = build(load_settings(_env_file=None, OURVIDZ_QWEN_INSTRUCT_URL=url), "chat")
    yield factories.services(models, tmp_path)
    server.shutdown()
    server.server_close()
    thread.join()


def item(job_id: str, text: str, **changes: Any) -> RecordingItem:
    return RecordingItem(factories.chat_job(text, job_id=job_id, **changes))


def test_a_text_that_its_server_refuses_or_drops_fails_alone(services: Services) -> None:
    """A request that is too long fails, one that broke off may be retried, the others are answered."""
    whole, late = item("whole", "Hills?"), item("late", "Hills?")
    long, dropped = item("long", "Hills?", max_tokens=512), item("dropped", "A cloud?")
    run_text_batch(whole, QueuedItems([long, dropped, late]), services)
    for one in (whole, late):
        assert one.error is None
        assert one.outcome is not None
        metadata = one.outcome.metadata
        assert one.outcome.assets[0].metadata["text"] == "a hill"
        assert (metadata["prompt_tokens"], metadata["tokens_generated"]) == (5, 2)
        assert (metadata["finish_reason"], metadata["inference_engine"]) == ("stop", "openai")
        assert metadata["model_name"] == "large"
    assert isinstance(long.error, InvalidParameters)
    assert isinstance(dropped.error, WorkerUnavailable)
