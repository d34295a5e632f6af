"""Problem documents: every refused request gets one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from tests.properties import examples

FIELDS_OF_PROBLEM = {
    "type", "title", "status", "detail", "instance", "code", "field", "rule", "value", "success", "error",
}  # fmt: skip


def checked(answer: Any) -> dict[str, Any]:
    """The problem document of a response, after checking its fields."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) == FIELDS_OF_PROBLEM
    assert problem["status"] == answer.status_code
    assert problem["success"] is False
    assert problem["error"] == problem["detail"] != ""
    return problem


def test_a_wrong_field_is_named_with_its_rule_and_value(shim) -> None:
    """The caller can correct the request from the response alone."""
    problem = checked(shim.client.post("/jobs", json=shim.payload(config={"sample_steps": 500})))
    assert (problem["field"], problem["value"]) == ("config.sample_steps", 500)
    assert "100" in problem["rule"]
    assert problem["instance"] == "/jobs"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"\xff\xfe", b"[]", b"null", b'"x"', b"1", b'{"id": NaN}', b'{"a": Infinity}',
        b'{"a": 1e999}', b'{"a": -Infinity}', b"[" * 100_000, b'{"a":' * 5000, b"9" * 5000,
        b'{"id": "\\ud800", "type": "sdxl_image_fast"}', '{"id": 1}'.encode("utf-16"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_job_is_refused(shim, body: bytes) -> None:
    """A malformed body is the caller's error, never a crash."""
    for path in ("/jobs", "/rpush/sdxl_queue"):
        answer = shim.client.post(path, content=body)
        assert answer.status_code == 422
        assert checked(answer)["code"] == "INVALID_PARAMETERS"


def test_a_body_that_is_not_utf8_is_refused_by_every_route(shim) -> None:
    """The framework reads the bodies of these routes; its own status for such a body is not documented."""
    for path in ("/emergency/operation", "/memory/load", "/memory/pin"):
        answer = shim.client.post(path, content=b"\xff=", headers={"Content-Type": "application/json"})
        assert (answer.status_code, checked(answer)["code"]) == (422, "INVALID_PARAMETERS")


def test_a_body_may_begin_with_a_byte_order_mark(shim) -> None:
    """Some editors and clients write one."""
    body = b"\xef\xbb\xbf" + json.dumps(shim.payload()).encode()
    assert shim.client.post("/jobs", content=body).status_code == 202


def test_unknown_routes_and_methods_get_problem_documents(shim) -> None:
    """Clients parse one error format."""
    assert checked(shim.client.get("/nothing"))["status"] == 404
    wrong = shim.client.put("/jobs")
    assert checked(wrong)["status"] == 405
    assert wrong.headers["allow"] == "GET, POST"
    assert shim.client.post("/jobs/x").headers["allow"] == "GET, DELETE"


def test_an_internal_error_reveals_no_details(shim, monkeypatch) -> None:
    """The traceback is in the log only."""

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(shim.ledger, "page", explode)
    with capture_logs() as logs:
        answer = shim.client.get("/jobs")
    assert (answer.status_code, checked(answer)["code"]) == (500, "INTERNAL_ERROR")
    assert "hunter2" not in answer.text
    assert ("internal_error", True) in [(line["event"], line.get("exc_info")) for line in logs]


def test_an_unreachable_ledger_is_a_503_with_retry_after(open_shim) -> None:
    """Clients know when to repeat the request. Nothing listens on port 1."""
    from ourvidz.ledger.store import Ledger

    class PingingLedger(Ledger):
        def page(self, **_: Any) -> Any:
            self.ping()

    answer = open_shim(ledger=PingingLedger("redis://127.0.0.1:1/0")).client.get("/jobs")
    assert (answer.status_code, checked(answer)["code"]) == (503, "WORKER_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1


def test_the_value_in_a_problem_is_shortened(shim) -> None:
    """A response does not repeat a large input."""
    problem = checked(shim.client.post("/jobs", json=shim.payload(user_id="x" * 5000)))
    assert len(problem["value"]) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        *("id", "type", "prompt", "user_id", "config", "metadata", "messages", "seed", "steps", "bucket"),
        *("job_id", "callback_url", "num_images", "resolution", "frames", "max_tokens", "negative_prompt"),
    ]
)
VALUES = JSON | st.sampled_from(["sdxl_image_fast", "video_fast", "chat", "admin_utilities", "job-9"])
JOB_LIKE = st.recursive(
    st.dictionaries(FIELDS, VALUES), lambda inner: st.dictionaries(FIELDS, inner | VALUES), max_leaves=12
)
BODIES = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode()),
    JOB_LIKE.map(lambda value: json.dumps(value).encode()),
    JOB_LIKE.map(lambda value: json.dumps([json.dumps(value)]).encode()),
)


@pytest.mark.parametrize(
    "path", ["/jobs", "/rpush/sdxl_queue", "/functions/v1/job-callback", "/chat", "/enhance", "/admin"]
)
def test_no_body_causes_a_server_error(shim, chat_worker, path: str) -> None:
    """Tried with arbitrary bytes, arbitrary JSON, and JSON with the fields of a job."""
    chat_worker(shim.ledger)
    # The wrapper keeps hypothesis from asking for a new shim per example.
    client: TestClient = shim.client

    @examples(150, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(body=BODIES)
    def post(body: bytes) -> None:
        answer = client.post(path, content=body)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            checked(answer)

    post()
