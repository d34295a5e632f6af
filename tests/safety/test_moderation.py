"""Moderation by an external HTTP service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ourvidz.errors import PolicyViolation, WorkerUnavailable
from ourvidz.settings import load_settings
from ourvidz.testing import eager
from ourvidz.wiring import control


class Service:
    """A moderation endpoint that flags texts with the word `word`. `answer` replaces its verdicts."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.status = 200
        self.answer: Any = None
        self.word = "teapot"
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append({"key": self.headers.get("Authorization"), **document})
                verdict = {"results": [{"flagged": service.word in document["input"], "categories": {}}]}
                body = json.dumps(verdict if service.answer is None else service.answer).encode()
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Write nothing to the output of tests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/moderations"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    """A running service."""
    running = Service()
    yield running
    running.close()


def moderation(tmp_path, **variables: Any):
    """The moderation client that these settings configure."""
    settings = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, **variables)
    return control.build(settings).moderation


def test_without_a_url_there_is_no_moderation(tmp_path) -> None:
    """It is optional."""
    assert moderation(tmp_path) is None


def test_a_text_that_is_not_flagged_passes(tmp_path, service) -> None:
    """The service gets the text and the key, and nothing else of the job."""
    check = moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url, OURVIDZ_MODERATION_KEY="k").check
    check("a lighthouse")
    check("  ")
    assert service.requests == [{"key": "Bearer k", "input": "a lighthouse"}]


def test_a_flagged_text_is_refused_with_a_neutral_message(tmp_path, service) -> None:
    """The category is for the operator's log only."""
    with pytest.raises(PolicyViolation) as refused:
        moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url).check("a teapot")
    assert "teapot" not in refused.value.message
    assert refused.value.audit["category"] == "moderation"
    assert service.requests[0]["key"] is None


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, None), (200, []), (200, {"results": []}), (200, {"results": [{"flagged": "no"}]}), (200, "x")],
)
def test_without_a_verdict_no_text_passes(tmp_path, service, status, answer) -> None:
    """Moderation fails closed."""
    service.status, service.answer = status, answer
    with pytest.raises(WorkerUnavailable):
        moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url).check("a lighthouse")


def test_while_the_service_is_down_no_text_passes(tmp_path, service) -> None:
    """It may be back soon, so the error is retryable."""
    service.close()
    with pytest.raises(WorkerUnavailable) as failed:
        moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url).check("a lighthouse")
    assert failed.value.retryable


def test_prompt_and_generated_text_of_a_job_are_checked(tmp_path, service, ourvidz_callbacks) -> None:
    """Only with `sfw_mode`. The worker checks before it generates and before it answers."""
    variables = {"OURVIDZ_MODERATION_URL": service.url}
    payload = {"type": "chat", "messages": [{"role": "user", "content": "Name a river."}], "temperature": 0}
    with eager(tmp_path, ourvidz_callbacks, **variables) as running:
        running.submit({**payload, "id": "unchecked"})
        assert service.requests == []
        running.submit({**payload, "id": "fine", "sfw_mode": True})
        generated = running.record("fine").outcome.assets[0].metadata["text"]
        assert [each["input"] for each in service.requests] == ["Name a river.", generated]
        service.word = generated.split()[0]
        running.submit({**payload, "id": "flagged", "sfw_mode": True})
        error = running.record("flagged").outcome.error
    assert error.code == "POLICY_VIOLATION"
    assert generated not in error.message
