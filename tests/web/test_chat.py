"""The synchronous chat and enhancement routes, with a fake chat worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ourvidz.errors import InvalidParameters, JobTimeout, OutOfMemory, PolicyViolation, WorkerLost
from ourvidz.net.sse import parse_events

PAYLOADS = Path(__file__).parents[1] / "contract" / "payloads"
HELLO = {"messages": [{"role": "user", "content": "What is a tide?"}]}
TEXT = "A tide is moving water."
CHAT_ROUTES = ["/chat", "/chat/unrestricted", "/generate"]
ENHANCE_ROUTES = ["/enhance", "/enhance/legacy"]


def sample(name: str) -> dict[str, Any]:
    """The body of a recorded request, by file name."""
    payload: dict[str, Any] = json.loads((PAYLOADS / f"{name}.json").read_text())["payload"]
    return payload


def events(body: bytes) -> list[tuple[str, Any]]:
    """The type and the JSON data of each event in a response body."""
    return [(event.event, json.loads(event.data)) for event in parse_events([body])]


def post(shim, route: str, body: Any, status: int = 200) -> dict[str, Any]:
    """Post a body, check the status, return the document."""
    answer = shim.client.post(route, json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("route", CHAT_ROUTES)
def test_a_chat_answer_has_exactly_the_documented_fields(shim, chat_worker, route) -> None:
    """Existing callers read each of them."""
    chat_worker(shim.ledger)
    document = post(shim, route, HELLO)
    job_id = document.pop("job_id")
    assert document == {
        "success": True,
        "response": TEXT,
        "generation_time": 0.25,
        "tokens_generated": 5,
        "finish_reason": "stop",
        "model_info": {
            "model_name": "tiny-qwen",
            "inference_engine": "pure",
            "active_model_type": "instruct",
        },
        "sfw_mode": False,
        "content_tier": None,
        "unrestricted_mode": False,
    }
    assert shim.client.get(f"/jobs/{job_id}").json()["result"]["text"] == TEXT


@pytest.mark.parametrize("route", ENHANCE_ROUTES)
def test_an_enhancement_answer_has_the_enhanced_prompt(shim, chat_worker, route) -> None:
    """It stands in place of `response`."""
    worker = chat_worker(shim.ledger)
    document = post(shim, route, {"prompt": "a kite"})
    assert document["enhanced_prompt"] == TEXT
    assert (document["enhancement_strategy"], document["success"]) == ("qwen", True)
    assert "response" not in document
    assert (worker.job.type, worker.job.max_tokens) == ("chat_enhance", 200)


def test_an_enhanced_prompt_is_stripped(shim, chat_worker) -> None:
    """Models begin and end their texts with line breaks."""
    chat_worker(shim.ledger, f"\n {TEXT} \n\n")
    assert post(shim, "/enhance", {"prompt": "a kite"})["enhanced_prompt"] == TEXT


def test_recorded_requests_of_the_edge_functions_are_accepted(shim, chat_worker) -> None:
    """The current form with messages and flags, and the older one with a prompt."""
    worker = chat_worker(shim.ledger)
    live = post(shim, "/chat", sample("12-live-chat"))
    assert (live["response"], live["sfw_mode"], live["content_tier"]) == (TEXT, True, "sfw")
    assert (worker.job.max_tokens, worker.job.frequency_penalty) == (200, 0.2)
    assert post(shim, "/chat", sample("13-old-chat"))["response"] == TEXT
    assert [message.role for message in worker.job.messages] == ["system", "user"]
    assert worker.job.messages[0].content == "Answer briefly."


@pytest.mark.parametrize(
    ("route", "body", "type_name"),
    [
        ("/chat", {}, "chat_conversation"),
        ("/chat/unrestricted", {}, "chat_unrestricted"),
        ("/generate", {}, "chat_conversation"),
        ("/generate", {"config": {"job_type": "chat_unrestricted"}}, "chat_unrestricted"),
        ("/generate", {"config": {"job_type": "enhance"}}, "chat_enhance"),
        ("/chat", {"type": "chat"}, "chat_conversation"),
        ("/enhance", {}, "chat_enhance"),
        ("/enhance", {"config": {"job_type": "video7b_high_enhanced"}}, "chat_enhance"),
        ("/enhance", {"config": {"job_type": "wan_video_fast"}}, "chat_enhance"),
        ("/enhance/legacy", {"job_type": "enhance"}, "chat_enhance"),
    ],
)
def test_the_job_type_is_the_bodys_or_the_routes(shim, chat_worker, route, body, type_name) -> None:
    """The body of an enhancement names the type that the prompt is for, which is not used."""
    worker = chat_worker(shim.ledger)
    post(shim, route, {"prompt": "a kite", **body})
    assert worker.job.type == type_name


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/chat", {"prompt": "a", "config": {"job_type": "video_fast"}}, "config.job_type"),
        ("/chat", {"prompt": "a", "type": "admin_utilities"}, "type"),
        ("/enhance", {"prompt": "a", "config": {"job_type": "opera"}}, "config.job_type"),
        ("/enhance", {}, "prompt"),
        ("/chat", {"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ("/chat", {**HELLO, "temperature": 3}, "temperature"),
        ("/chat", {**HELLO, "stop": ["a"] * 5}, "stop"),
        ("/chat", {**HELLO, "callback_url": "http://elsewhere.example/"}, "callback_url"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_queued(shim, route, body, field) -> None:
    """Synchronous routes validate like `POST /jobs`."""
    document = post(shim, route, body, 422)
    assert (document["field"], document["success"]) == (field, False)
    assert shim.ledger.page().records == []


def test_the_job_id_is_generated(shim, chat_worker) -> None:
    """A request that repeats an id gets an answer of its own."""
    chat_worker(shim.ledger)
    ids = {post(shim, "/chat", {**HELLO, "id": "mine", "job_id": "mine"})["job_id"] for _ in range(2)}
    assert len(ids) == 2
    assert "mine" not in ids


@pytest.mark.parametrize("error", [OutOfMemory("no room"), WorkerLost("gone"), JobTimeout("too slow")])
def test_a_failed_enhancement_returns_the_original_prompt(shim, chat_worker, error) -> None:
    """An image of the original prompt is better than none."""
    chat_worker(shim.ledger, "", error=error)
    document = post(shim, "/enhance", {"prompt": "a kite", "config": {"system_prompt": "Be vivid."}})
    assert (document["enhanced_prompt"], document["enhancement_strategy"]) == ("a kite", "fallback")
    assert document["enhancement_reason"] == error.message


def test_an_enhancement_that_times_out_returns_the_original_prompt(open_shim, chat_worker) -> None:
    """Half an enhanced prompt describes half an image."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.2)
    chat_worker(shim.ledger, "A kite over", endless=True)
    document = post(shim, "/enhance", {"prompt": "a kite"})
    assert (document["enhanced_prompt"], document["enhancement_strategy"]) == ("a kite", "fallback")
    assert document["finish_reason"] == "timeout"


def test_an_enhancement_without_a_worker_returns_the_original_prompt(open_shim) -> None:
    """Whether the job is refused at once or times out in the queue."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.1)
    assert post(shim, "/enhance", {"prompt": "a kite"})["enhanced_prompt"] == "a kite"
    shim = open_shim(OURVIDZ_WORKER_GRACE_S=0)
    assert post(shim, "/enhance", {"prompt": "a kite"})["enhancement_strategy"] == "fallback"


@pytest.mark.parametrize("error", [PolicyViolation("no"), InvalidParameters("too long")])
def test_a_refused_enhancement_is_an_error(shim, chat_worker, error) -> None:
    """The caller must change the request; a fallback would hide that."""
    chat_worker(shim.ledger, "", error=error)
    assert post(shim, "/enhance", {"prompt": "a kite"}, 422)["code"] == error.code


@pytest.mark.parametrize("route", CHAT_ROUTES)
def test_a_streamed_answer_is_tokens_and_then_the_whole_answer(shim, chat_worker, route) -> None:
    """`done` has the document that a request without a stream returns."""
    chat_worker(shim.ledger)
    answer = shim.client.post(route, json={**HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    received = events(answer.content)
    assert [kind for kind, _ in received] == ["token"] * 5 + ["done"]
    assert "".join(data["text"] for kind, data in received if kind == "token") == TEXT
    done = received[-1][1]
    assert (done["response"], done["success"]) == (TEXT, True)
    assert answer.headers["x-job-id"] == done["job_id"]


def test_a_streamed_enhancement_that_fails_ends_with_the_original_prompt(shim, chat_worker) -> None:
    """Also after part of an enhanced prompt was sent."""
    chat_worker(shim.ledger, "A kite over", error=OutOfMemory("no room"))
    answer = shim.client.post("/enhance", json={"prompt": "a kite", "stream": True})
    kind, done = events(answer.content)[-1]
    assert (kind, done["enhanced_prompt"], done["enhancement_strategy"]) == ("done", "a kite", "fallback")


def test_an_error_before_the_first_token_is_the_status_of_the_response(shim, chat_worker) -> None:
    """Clients need not read a stream to see the error."""
    chat_worker(shim.ledger, "", error=WorkerLost("gone"))
    assert post(shim, "/chat", {**HELLO, "stream": True}, 503)["code"] == "WORKER_LOST"


def test_an_error_after_the_first_token_is_the_last_event(shim, chat_worker) -> None:
    """The status was sent already; the event has the problem document."""
    chat_worker(shim.ledger, "A tide", error=OutOfMemory("no room"))
    answer = shim.client.post("/chat", json={**HELLO, "stream": True})
    kind, problem = events(answer.content)[-1]
    assert kind == "error"
    assert (problem["code"], problem["success"], problem["status"]) == ("OOM_ERROR", False, 500)


def test_the_audit_log_has_the_error_of_a_stream(shim, chat_worker) -> None:
    """The status alone would look like success."""
    chat_worker(shim.ledger, "A tide", error=OutOfMemory("no room"))
    with capture_logs() as lines:
        shim.client.post("/chat", json={**HELLO, "stream": True})
    (line,) = [line for line in lines if line["event"] == "audit"]
    assert (line["status"], line["outcome"], line["type"]) == (200, "OOM_ERROR", "chat_conversation")
    assert "tide" not in json.dumps(line)


def test_chat_needs_the_chat_scope(open_shim, chat_worker) -> None:
    """The three worker keys have it."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:jobs", SDXL_WORKER_API_KEY="s", OURVIDZ_OPEN_ROUTES="/enhance")
    chat_worker(shim.ledger)
    statuses = {
        key: shim.client.post("/chat", json=HELLO, headers={"X-API-Key": key}).status_code
        for key in ("", "b", "s")
    }
    assert statuses == {"": 401, "b": 403, "s": 200}
    assert post(shim, "/enhance", {"prompt": "a kite"})["enhancement_strategy"] == "qwen"


def test_the_flags_of_a_request_are_returned(shim, chat_worker) -> None:
    """They change no parameter and no prompt."""
    worker = chat_worker(shim.ledger)
    flags = {"sfw_mode": True, "content_tier": "artistic", "unrestricted_mode": True}
    document = post(shim, "/chat", {**HELLO, **flags})
    assert {name: document[name] for name in flags} == flags
    assert worker.job.sfw_mode
    assert len(worker.job.messages) == 1
