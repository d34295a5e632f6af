"""The synchronous chat and enhancement routes, with a worker that is played by a thread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ourvidz.errors import InvalidParameters, JobTimeout, OutOfMemory, PolicyViolation, WorkerLost

PAYLOADS = Path(__file__).parents[1] / "contract" / "payloads"
HELLO = {"messages": [{"role": "user", "content": "What is a tide?"}]}
SAID = "A tide is moving water."
CHAT_ROUTES = ["/chat", "/chat/unrestricted", "/generate"]
ENHANCE_ROUTES = ["/enhance", "/enhance/legacy"]


def sample(name: str) -> dict[str, Any]:
    """The body of a recorded request."""
    found: dict[str, Any] = json.loads((PAYLOADS / f"{name}.json").read_text())["payload"]
    return found


def events(text: str) -> list[tuple[str, Any]]:
    """The events of a stream: kind and data."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n") if not block.startswith(":")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def ask(shim, route: str, body: Any, status: int = 200) -> dict[str, Any]:
    """Post a body; the document that comes back."""
    answer = shim.client.post(route, json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("route", CHAT_ROUTES)
def test_a_conversation_is_answered_with_the_fields_callers_read(shim, chat_worker, route) -> None:
    """Exactly these; a caller in the field reads each of them."""
    chat_worker(shim.ledger)
    found = ask(shim, route, HELLO)
    job_id = found.pop("job_id")
    assert found == {
        "success": True,
        "response": SAID,
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
    assert shim.client.get(f"/jobs/{job_id}").json()["result"]["text"] == SAID


@pytest.mark.parametrize("route", ENHANCE_ROUTES)
def test_an_enhancement_is_answered_with_the_better_prompt(shim, chat_worker, route) -> None:
    """In place of the response."""
    worker = chat_worker(shim.ledger)
    found = ask(shim, route, {"prompt": "a kite"})
    assert found["enhanced_prompt"] == SAID
    assert (found["enhancement_strategy"], found["success"]) == ("qwen", True)
    assert "response" not in found
    assert (worker.job.type, worker.job.max_tokens) == ("chat_enhance", 200)


def test_an_enhanced_prompt_has_no_blanks_around_it(shim, chat_worker) -> None:
    """Models begin and end with line breaks; the original prompt of a fallback is returned as it came."""
    chat_worker(shim.ledger, f"\n {SAID} \n\n")
    assert ask(shim, "/enhance", {"prompt": "a kite"})["enhanced_prompt"] == SAID


def test_the_recorded_requests_of_the_edge_functions_are_answered(shim, chat_worker) -> None:
    """The live form with messages and flags, and the older one with a prompt."""
    worker = chat_worker(shim.ledger)
    live = ask(shim, "/chat", sample("12-live-chat"))
    assert (live["response"], live["sfw_mode"], live["content_tier"]) == (SAID, True, "sfw")
    assert (worker.job.max_tokens, worker.job.frequency_penalty) == (200, 0.2)
    assert ask(shim, "/chat", sample("13-old-chat"))["response"] == SAID
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
def test_the_type_is_the_routes_or_the_one_that_is_named(shim, chat_worker, route, body, type_name) -> None:
    """What an enhancement is for is not what it is."""
    worker = chat_worker(shim.ledger)
    ask(shim, route, {"prompt": "a kite", **body})
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
def test_a_wrong_body_is_refused_by_name_and_queues_nothing(shim, route, body, field) -> None:
    """Also on the routes that are asked directly."""
    found = ask(shim, route, body, 422)
    assert (found["field"], found["success"]) == (field, False)
    assert shim.ledger.page().records == []


def test_the_id_is_made_here(shim, chat_worker) -> None:
    """A caller that repeats an id wants an answer, not the last one's."""
    chat_worker(shim.ledger)
    ids = {ask(shim, "/chat", {**HELLO, "id": "mine", "job_id": "mine"})["job_id"] for _ in range(2)}
    assert len(ids) == 2
    assert "mine" not in ids


@pytest.mark.parametrize("fault", [OutOfMemory("no room"), WorkerLost("gone"), JobTimeout("too slow")])
def test_an_enhancement_that_fails_brings_the_original_prompt(shim, chat_worker, fault) -> None:
    """A picture of the plain prompt is better than none."""
    chat_worker(shim.ledger, "", fault=fault)
    found = ask(shim, "/enhance", {"prompt": "a kite", "config": {"system_prompt": "Be vivid."}})
    assert (found["enhanced_prompt"], found["enhancement_strategy"]) == ("a kite", "fallback")
    assert found["enhancement_reason"] == fault.message


def test_an_enhancement_that_takes_too_long_brings_the_original_prompt(open_shim, chat_worker) -> None:
    """Half an enhanced prompt describes half a picture."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.2)
    chat_worker(shim.ledger, "A kite over", endless=True)
    found = ask(shim, "/enhance", {"prompt": "a kite"})
    assert (found["enhanced_prompt"], found["enhancement_strategy"]) == ("a kite", "fallback")
    assert found["finish_reason"] == "timeout"


def test_an_enhancement_without_a_worker_brings_the_original_prompt(open_shim) -> None:
    """Nobody was there to try."""
    shim = open_shim(OURVIDZ_SYNC_DEADLINE_S=0.1)
    assert ask(shim, "/enhance", {"prompt": "a kite"})["enhanced_prompt"] == "a kite"
    shim = open_shim(OURVIDZ_WORKER_GRACE_S=0)
    assert ask(shim, "/enhance", {"prompt": "a kite"})["enhancement_strategy"] == "fallback"


@pytest.mark.parametrize("fault", [PolicyViolation("no"), InvalidParameters("too long")])
def test_an_enhancement_that_is_refused_stays_refused(shim, chat_worker, fault) -> None:
    """What the caller has to change is told, not papered over."""
    chat_worker(shim.ledger, "", fault=fault)
    assert ask(shim, "/enhance", {"prompt": "a kite"}, 422)["code"] == fault.code


@pytest.mark.parametrize("route", CHAT_ROUTES)
def test_a_streamed_answer_comes_token_by_token(shim, chat_worker, route) -> None:
    """And the last event is the whole answer."""
    chat_worker(shim.ledger)
    answer = shim.client.post(route, json={**HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    assert [kind for kind, _ in found] == ["token"] * 5 + ["done"]
    assert "".join(data["text"] for kind, data in found if kind == "token") == SAID
    done = found[-1][1]
    assert (done["response"], done["success"]) == (SAID, True)
    assert answer.headers["x-job-id"] == done["job_id"]


def test_a_streamed_enhancement_ends_with_the_prompt_to_use(shim, chat_worker) -> None:
    """Also where the model was stopped half-way."""
    chat_worker(shim.ledger, "A kite over", fault=OutOfMemory("no room"))
    answer = shim.client.post("/enhance", json={"prompt": "a kite", "stream": True})
    kind, done = events(answer.text)[-1]
    assert (kind, done["enhanced_prompt"], done["enhancement_strategy"]) == ("done", "a kite", "fallback")


def test_a_failure_before_the_first_token_has_its_status(shim, chat_worker) -> None:
    """A client need not read a stream to learn that there is none."""
    chat_worker(shim.ledger, "", fault=WorkerLost("gone"))
    assert ask(shim, "/chat", {**HELLO, "stream": True}, 503)["code"] == "WORKER_LOST"


def test_a_failure_after_it_is_the_last_event(shim, chat_worker) -> None:
    """The status is on its way already; the document is the same."""
    chat_worker(shim.ledger, "A tide", fault=OutOfMemory("no room"))
    answer = shim.client.post("/chat", json={**HELLO, "stream": True})
    kind, problem = events(answer.text)[-1]
    assert kind == "error"
    assert (problem["code"], problem["success"], problem["status"]) == ("OOM_ERROR", False, 500)


def test_the_audit_log_knows_how_a_stream_ended(shim, chat_worker) -> None:
    """Its status was 200 before it failed."""
    chat_worker(shim.ledger, "A tide", fault=OutOfMemory("no room"))
    with capture_logs() as lines:
        shim.client.post("/chat", json={**HELLO, "stream": True})
    (line,) = [line for line in lines if line["event"] == "audit"]
    assert (line["status"], line["outcome"], line["type"]) == (200, "OOM_ERROR", "chat_conversation")
    assert "tide" not in json.dumps(line)


def test_chat_needs_the_chat_scope(open_shim, chat_worker) -> None:
    """The three worker keys have it: callers in the field mix them up."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:jobs", SDXL_WORKER_API_KEY="s", OURVIDZ_OPEN_ROUTES="/enhance")
    chat_worker(shim.ledger)
    statuses = {
        key: shim.client.post("/chat", json=HELLO, headers={"X-API-Key": key}).status_code
        for key in ("", "b", "s")
    }
    assert statuses == {"": 401, "b": 403, "s": 200}
    assert ask(shim, "/enhance", {"prompt": "a kite"})["enhancement_strategy"] == "qwen"


def test_the_flags_come_back(shim, chat_worker) -> None:
    """They change nothing here; the caller wants to see them again."""
    worker = chat_worker(shim.ledger)
    flags = {"sfw_mode": True, "content_tier": "artistic", "unrestricted_mode": True}
    found = ask(shim, "/chat", {**HELLO, **flags})
    assert {name: found[name] for name in flags} == flags
    assert worker.job.sfw_mode
    assert len(worker.job.messages) == 1
