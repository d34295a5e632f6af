"""The moderation hook, against a real HTTP service."""

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
    """A moderation endpoint that flags texts with one word in them."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.status = 200
        self.answer: Any = None
        self.word = "teapot"
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.heard.append({"key": self.headers.get("Authorization"), **document})
                verdict = {"results": [{"flagged": service.word in document["input"], "categories": {}}]}
                body = json.dumps(verdict if service.answer is None else service.answer).encode()
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

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
    """A service that judges."""
    running = Service()
    yield running
    running.close()


def moderation(tmp_path, **variables: Any):
    """What the settings make of it."""
    chosen = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, **variables)
    return control.build(chosen).moderation


def test_without_a_url_there_is_none(tmp_path) -> None:
    """It is an operator's choice."""
    assert moderation(tmp_path) is None


def test_a_text_that_is_not_flagged_passes(tmp_path, service) -> None:
    """The service is given the text and the key, and nothing else of the job."""
    judge = moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url, OURVIDZ_MODERATION_KEY="k").judge
    judge("a lighthouse")
    judge("  ")
    assert service.heard == [{"key": "Bearer k", "input": "a lighthouse"}]


def test_a_flagged_text_is_refused_in_neutral_words(tmp_path, service) -> None:
    """Which category it was is nobody's business but the operator's."""
    with pytest.raises(PolicyViolation) as refused:
        moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url).judge("a teapot")
    assert "teapot" not in refused.value.message
    assert refused.value.audit["category"] == "moderation"
    assert service.heard[0]["key"] is None


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, None), (200, []), (200, {"results": []}), (200, {"results": [{"flagged": "no"}]}), (200, "x")],
)
def test_a_service_that_does_not_judge_lets_nothing_pass(tmp_path, service, status, answer) -> None:
    """Whoever switched it on does not want it to be off when it breaks."""
    service.status, service.answer = status, answer
    with pytest.raises(WorkerUnavailable):
        moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url).judge("a lighthouse")


def test_a_service_that_is_away_lets_nothing_pass(tmp_path, service) -> None:
    """It may be back soon: the request can be repeated."""
    service.close()
    with pytest.raises(WorkerUnavailable) as failed:
        moderation(tmp_path, OURVIDZ_MODERATION_URL=service.url).judge("a lighthouse")
    assert failed.value.retryable


def test_a_job_is_judged_on_the_way_in_and_on_the_way_out(tmp_path, service, ourvidz_callbacks) -> None:
    """With `sfw_mode` alone: by the worker, before it reads and before it answers."""
    variables = {"OURVIDZ_MODERATION_URL": service.url}
    asked = {"type": "chat", "messages": [{"role": "user", "content": "Name a river."}], "temperature": 0}
    with eager(tmp_path, ourvidz_callbacks, **variables) as running:
        running.submit({**asked, "id": "unjudged"})
        assert service.heard == []
        running.submit({**asked, "id": "fine", "sfw_mode": True})
        said = running.record("fine").outcome.assets[0].metadata["text"]
        assert [each["input"] for each in service.heard] == ["Name a river.", said]
        service.word = said.split()[0]
        running.submit({**asked, "id": "flagged", "sfw_mode": True})
        error = running.record("flagged").outcome.error
    assert error.code == "POLICY_VIOLATION"
    assert said not in error.message
