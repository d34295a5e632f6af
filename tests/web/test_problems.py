"""What a refused request looks like, whatever was wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from structlog.testing import capture_logs

SHAPE = {
    "type", "title", "status", "detail", "instance", "code", "field", "rule", "value", "success", "error",
}  # fmt: skip


def checked(answer: Any) -> dict[str, Any]:
    """The problem in an answer, after checking its shape."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) == SHAPE
    assert problem["status"] == answer.status_code
    assert problem["success"] is False
    assert problem["error"] == problem["detail"] != ""
    return problem


def test_a_wrong_field_is_named_with_its_rule_and_value(shim) -> None:
    """The caller mends the request from the answer alone."""
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
    """Whatever comes in is the caller's to mend, never a crash."""
    for path in ("/jobs", "/rpush/sdxl_queue"):
        answer = shim.client.post(path, content=body)
        assert answer.status_code == 422
        assert checked(answer)["code"] == "INVALID_PARAMETERS"


def test_a_body_may_begin_with_a_byte_order_mark(shim) -> None:
    """Some editors and clients write one."""
    body = b"\xef\xbb\xbf" + json.dumps(shim.payload()).encode()
    assert shim.client.post("/jobs", content=body).status_code == 202


def test_unknown_routes_and_methods_are_problems_too(shim) -> None:
    """A client has one way to read an error."""
    assert checked(shim.client.get("/nothing"))["status"] == 404
    wrong = shim.client.put("/jobs")
    assert checked(wrong)["status"] == 405
    assert wrong.headers["allow"] == "GET, POST"
    assert shim.client.post("/jobs/x").headers["allow"] == "GET, DELETE"


def test_a_failure_of_ours_says_nothing_of_the_inside(shim, monkeypatch) -> None:
    """The traceback is for the operators."""

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(shim.ledger, "page", explode)
    with capture_logs() as logs:
        answer = shim.client.get("/jobs")
    assert (answer.status_code, checked(answer)["code"]) == (500, "INTERNAL_ERROR")
    assert "hunter2" not in answer.text
    assert ("internal_error", True) in [(line["event"], line.get("exc_info")) for line in logs]


def test_a_ledger_that_is_away_is_503_with_a_time_to_come_back(open_shim) -> None:
    """Nothing listens on port 1."""
    from ourvidz.ledger.redis_store import RedisLedger

    class Hasty(RedisLedger):
        def page(self, **_: Any) -> Any:
            self.ping()

    answer = open_shim(ledger=Hasty("redis://127.0.0.1:1/0")).client.get("/jobs")
    assert (answer.status_code, checked(answer)["code"]) == (503, "WORKER_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1


def test_the_value_shown_is_short_and_plain(shim) -> None:
    """An error is no echo chamber."""
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
NEAR = st.recursive(
    st.dictionaries(FIELDS, VALUES), lambda inner: st.dictionaries(FIELDS, inner | VALUES), max_leaves=12
)
BODIES = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode()),
    NEAR.map(lambda value: json.dumps(value).encode()),
    NEAR.map(lambda value: json.dumps([json.dumps(value)]).encode()),
)


@pytest.mark.parametrize(
    "path", ["/jobs", "/rpush/sdxl_queue", "/functions/v1/job-callback", "/chat", "/enhance", "/admin"]
)
def test_no_body_whatever_is_a_server_error(shim, chat_worker, path: str) -> None:
    """Arbitrary bytes, arbitrary JSON, and JSON that looks like a job."""
    chat_worker(shim.ledger)
    # The wrapper keeps hypothesis from asking for a new shim per example.
    client: TestClient = shim.client

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(body=BODIES)
    def post(body: bytes) -> None:
        answer = client.post(path, content=body)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            checked(answer)

    post()
