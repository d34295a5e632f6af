"""Synchronous chat on a real stack, with plain HTTP and with the OpenAI client."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

PAYLOADS = Path(__file__).parents[1] / "contract" / "payloads"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 40}
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a red circle, a red circle, a red circle, a red circle"}],
    "max_tokens": 1900,
    "temperature": 2,
    "top_p": 1,
    "frequency_penalty": -2,
    "presence_penalty": -2,
    "seed": 1,
}
"""Penalties that reward repetition make the tiny model generate for many seconds."""
RESPONSE_S = 90


@pytest.fixture(scope="module")
def running(stacks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One stack with a chat worker, whose leases are short."""
    folder = tmp_path_factory.mktemp("chat") / "state"
    with stacks(folder, "--workers", "chat", env={"OURVIDZ_LEASE_S": "2"}) as started:
        yield started


def post(running: Any, path: str, body: dict[str, Any]) -> requests.Response:
    """Post a body and wait for the response."""
    return requests.post(running.shim + path, json=body, timeout=RESPONSE_S)


def processing(running: Any) -> list[str]:
    """The ids of the chat jobs that are being generated."""
    jobs = running.get("/jobs", status="processing").json()["items"]
    return [job["job_id"] for job in jobs if job["type"].startswith("chat")]


def chat_child(running: Any) -> int:
    """The process id of the pool child that has the language models."""
    (worker,) = [each for each in running.ledger.workers() if each.family == "chat"]
    return int(worker.pid)


def test_recorded_requests_get_the_documented_fields(running: Any) -> None:
    """Sent in the current form, in the older form, and as a Wan prompt to enhance."""
    for name in ("12-live-chat", "13-old-chat"):
        body = json.loads((PAYLOADS / f"{name}.json").read_text())["payload"]
        answer = post(running, "/chat", body).json()
        assert answer["success"] is True
        assert answer["response"].strip()
        assert answer["generation_time"] > 0
        assert answer["tokens_generated"] > 0
        assert answer["model_info"].keys() == {"model_name", "inference_engine", "active_model_type"}
        assert answer["model_info"]["inference_engine"] == "pure"
        assert running.job(answer["job_id"])["result"]["text"] == answer["response"]
        assert running.inbox(answer["job_id"]) == []
    wan = {"prompt": "a kite over dunes", "config": {"job_type": "video7b_high_enhanced"}}
    enhanced = post(running, "/enhance", wan).json()
    assert (enhanced["success"], enhanced["enhancement_strategy"]) == (True, "qwen")
    assert enhanced["enhanced_prompt"].strip()


def test_the_first_token_of_a_stream_arrives_long_before_the_last(running: Any) -> None:
    """Tokens are sent while the text is generated, not at its end."""
    started_at = time.monotonic()
    with requests.post(
        running.shim + "/chat",
        json={**LONG, "max_tokens": 200, "stream": True},
        stream=True,
        timeout=RESPONSE_S,
    ) as answer:
        received = [(time.monotonic(), line) for line in answer.iter_lines(1) if line.startswith(b"event: ")]
    kinds = [line.decode().removeprefix("event: ") for _, line in received]
    assert kinds[-1] == "done"
    assert kinds.count("token") >= 5
    assert received[0][0] - started_at < (received[-1][0] - started_at) / 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_cancels_the_job_within_a_second(running: Any, stream: bool) -> None:
    """The worker is free for the next request."""
    connection = http.client.HTTPConnection(urlsplit(running.shim).netloc)
    connection.request("POST", "/chat", json.dumps({**LONG, "stream": stream}))
    (job_id,) = running.wait_for(lambda: processing(running), "the job did not start")
    running.wait_for(lambda: running.ledger.stream(job_id), "no text was streamed")
    connection.close()
    closed_at = time.monotonic()
    running.wait_for(
        lambda: running.job(job_id)["status"] == "cancelled", "the job was not cancelled", within_s=1.0
    )
    assert post(running, "/chat", HELLO).status_code == 200
    assert time.monotonic() - closed_at < 10


def test_a_killed_worker_leaves_no_request_without_a_response(running: Any) -> None:
    """The response is that of the next attempt or a 503; a started stream ends with an error event."""
    with ThreadPoolExecutor(2) as callers:
        body = {**LONG, "max_tokens": 400}
        whole = callers.submit(post, running, "/chat", body)
        (first,) = running.wait_for(lambda: processing(running), "the job did not start")
        streaming = callers.submit(post, running, "/chat", {**body, "stream": True})
        running.wait_for(
            lambda: [job for job in processing(running) if job != first and running.record(job).streamed],
            "the second job did not join the batch",
        )
        os.kill(chat_child(running), signal.SIGKILL)
        streamed, answered = streaming.result(RESPONSE_S), whole.result(RESPONSE_S)
    assert answered.status_code in (200, 503), answered.text
    if answered.status_code == 200:
        assert answered.json()["response"]
    last = streamed.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error"), last
    assert "WORKER_LOST" in last


def test_a_hundred_requests_at_once_are_answered_and_start_in_order(running: Any) -> None:
    """No job starts before one that was submitted earlier."""
    with ThreadPoolExecutor(100) as callers:
        answers = list(callers.map(lambda _: post(running, "/chat", {**HELLO, "max_tokens": 8}), range(100)))
    assert [answer.status_code for answer in answers] == [200] * 100
    records = [running.record(answer.json()["job_id"]) for answer in answers]
    assert len({record.job_id for record in records}) == 100
    started = sorted(records, key=lambda record: (record.claimed_at, record.order))
    assert [record.order for record in started] == sorted(record.order for record in records)


def test_administration_runs_in_the_shim_and_as_a_job(running: Any) -> None:
    """`flush_caches` reaches the worker, which frees its memory."""
    status = post(running, "/admin", {}).json()["result"]
    assert status["queues"]["chat_queue"].keys() == {"depth", "paused", "workers"}
    running.submit("adm", type="admin_utilities", operation="queues")
    (asset,) = running.wait_done("adm")["result"]["assets"]
    assert asset["type"] == "json"
    assert "chat_queue" in asset["metadata"]["result"]["queues"]
    notified = post(running, "/admin", {"operation": "flush_caches"}).json()["result"]["asked"]
    assert [each.partition("@")[0] for each in notified] == ["chat"]
    log = running.state_dir / "logs" / "chat.log"
    running.wait_for(lambda: "caches_flushed" in log.read_text(), "the worker did not flush its caches")


# With the openai client


@pytest.fixture(scope="module")
def openai() -> Any:
    """The `openai` package."""
    if importlib.util.find_spec("openai") is None:
        missing = "openai is not installed (pip install 'ourvidz[dev]'): its client is not tested"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    import openai

    return openai


@pytest.fixture(scope="module")
def client(openai: Any, running: Any) -> Any:
    """An OpenAI client with the URL of the stack."""
    with openai.OpenAI(base_url=running.shim + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_the_openai_client_gets_the_same_text_for_the_same_seed(client: Any) -> None:
    """The token counts of `usage` add up."""
    both = [
        client.chat.completions.create(model="qwen_instruct", seed=5, temperature=1, **HELLO)
        for _ in range(2)
    ]
    texts = {completion.choices[0].message.content for completion in both}
    assert len(texts) == 1
    assert texts.pop().strip()
    usage = both[0].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert both[0].choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="qwen_instruct", **{**HELLO, "max_tokens": 2})
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


def test_the_openai_client_streams_the_text_of_a_plain_completion(client: Any) -> None:
    """Greedy decoding gives the same text either way."""
    body = {"model": "qwen_instruct", "temperature": 0, **HELLO}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **body))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_openai_client_lists_models_and_raises_errors(openai: Any, client: Any) -> None:
    """Errors of the shim and of the worker raise the exception classes of the client."""
    assert {model.id for model in client.models.list()} == {"qwen_instruct", "qwen_base"}
    assert client.models.retrieve("qwen_base").created > 0
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", **HELLO)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="qwen_base", n=2, **HELLO)
    too_long = {"role": "user", "content": "circle " * 5000}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="context"):
            client.chat.completions.create(model="qwen_instruct", messages=[too_long], stream=stream)
