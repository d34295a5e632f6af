"""Conversations that callers wait for, on a real stack: through plain HTTP and through the OpenAI client."""

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
"""Penalties that reward repetition keep the tiny model talking for many seconds."""
WAITED_S = 90


@pytest.fixture(scope="module")
def running(stacks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One stack with a chat worker, whose leases are short."""
    folder = tmp_path_factory.mktemp("chat") / "state"
    with stacks(folder, "--workers", "chat", env={"OURVIDZ_LEASE_S": "2"}) as started:
        yield started


def ask(running: Any, path: str, body: dict[str, Any]) -> requests.Response:
    """Post a body and wait for the answer."""
    return requests.post(running.shim + path, json=body, timeout=WAITED_S)


def processing(running: Any) -> list[str]:
    """The ids of the jobs that are being generated."""
    found = running.get("/jobs", status="processing").json()["items"]
    return [job["job_id"] for job in found if job["type"].startswith("chat")]


def chat_child(running: Any) -> int:
    """The process that holds the language models."""
    (worker,) = [each for each in running.ledger.workers() if each.family == "chat"]
    return int(worker.pid)


def test_recorded_requests_get_the_fields_their_callers_read(running: Any) -> None:
    """The live form, the older form, and a Wan prompt that is to be enhanced."""
    for name in ("12-live-chat", "13-old-chat"):
        body = json.loads((PAYLOADS / f"{name}.json").read_text())["payload"]
        found = ask(running, "/chat", body).json()
        assert found["success"] is True
        assert found["response"].strip()
        assert found["generation_time"] > 0
        assert found["tokens_generated"] > 0
        assert found["model_info"].keys() == {"model_name", "inference_engine", "active_model_type"}
        assert found["model_info"]["inference_engine"] == "pure"
        assert running.job(found["job_id"])["result"]["text"] == found["response"]
        assert running.inbox(found["job_id"]) == []
    wan = {"prompt": "a kite over dunes", "config": {"job_type": "video7b_high_enhanced"}}
    found = ask(running, "/enhance", wan).json()
    assert (found["success"], found["enhancement_strategy"]) == (True, "qwen")
    assert found["enhanced_prompt"].strip()


def test_the_first_token_of_a_stream_comes_long_before_the_last(running: Any) -> None:
    """Callers read while it is written: most of the time they wait is reading time."""
    began = time.monotonic()
    with requests.post(
        running.shim + "/chat",
        json={**LONG, "max_tokens": 200, "stream": True},
        stream=True,
        timeout=WAITED_S,
    ) as answer:
        came = [(time.monotonic(), line) for line in answer.iter_lines(1) if line.startswith(b"event: ")]
    kinds = [line.decode().removeprefix("event: ") for _, line in came]
    assert kinds[-1] == "done"
    assert kinds.count("token") >= 5
    assert came[0][0] - began < (came[-1][0] - began) / 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_client_frees_the_worker_within_a_second(running: Any, stream: bool) -> None:
    """The next caller must not wait for an answer that nobody reads."""
    connection = http.client.HTTPConnection(urlsplit(running.shim).netloc)
    connection.request("POST", "/chat", json.dumps({**LONG, "stream": stream}))
    (job_id,) = running.wait_for(lambda: processing(running), "the job did not start")
    running.wait_for(lambda: running.ledger.stream(job_id), "nothing was said")
    connection.close()
    gone = time.monotonic()
    running.wait_for(lambda: running.job(job_id)["status"] == "cancelled", "it went on", within_s=1.0)
    assert ask(running, "/chat", HELLO).status_code == 200
    assert time.monotonic() - gone < 10


def test_a_killed_worker_leaves_nobody_waiting(running: Any) -> None:
    """Who has read nothing gets the next attempt's answer or a 503; who has, an error at once."""
    with ThreadPoolExecutor(2) as callers:
        body = {**LONG, "max_tokens": 400}
        waiting = callers.submit(ask, running, "/chat", body)
        (first,) = running.wait_for(lambda: processing(running), "the job did not start")
        reading = callers.submit(ask, running, "/chat", {**body, "stream": True})
        running.wait_for(
            lambda: [job for job in processing(running) if job != first and running.record(job).streamed],
            "the second did not join",
        )
        os.kill(chat_child(running), signal.SIGKILL)
        streamed, answered = reading.result(WAITED_S), waiting.result(WAITED_S)
    assert answered.status_code in (200, 503), answered.text
    if answered.status_code == 200:
        assert answered.json()["response"]
    last = streamed.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error"), last
    assert "WORKER_LOST" in last


def test_a_burst_of_a_hundred_loses_nothing_and_starts_in_order_of_arrival(running: Any) -> None:
    """Everybody is answered, and nobody is overtaken by who came later."""
    with ThreadPoolExecutor(100) as callers:
        answers = list(callers.map(lambda _: ask(running, "/chat", {**HELLO, "max_tokens": 8}), range(100)))
    assert [answer.status_code for answer in answers] == [200] * 100
    records = [running.record(answer.json()["job_id"]) for answer in answers]
    assert len({record.job_id for record in records}) == 100
    started = sorted(records, key=lambda record: (record.claimed_at, record.order))
    assert [record.order for record in started] == sorted(record.order for record in records)


def test_administration_works_while_the_chat_worker_does(running: Any) -> None:
    """Over HTTP and as a job; the worker itself gives back what it keeps."""
    found = ask(running, "/admin", {}).json()["result"]
    assert found["queues"]["chat_queue"].keys() == {"depth", "paused", "workers"}
    running.submit("adm", type="admin_utilities", operation="queues")
    (asset,) = running.wait_done("adm")["result"]["assets"]
    assert asset["type"] == "json"
    assert "chat_queue" in asset["metadata"]["result"]["queues"]
    asked = ask(running, "/admin", {"operation": "flush_caches"}).json()["result"]["asked"]
    assert [each.partition("@")[0] for each in asked] == ["chat"]
    log = running.state_dir / "logs" / "chat.log"
    running.wait_for(lambda: "caches_flushed" in log.read_text(), "the worker did not hear of it")


# -- through the real client


@pytest.fixture(scope="module")
def openai() -> Any:
    """Its package."""
    if importlib.util.find_spec("openai") is None:
        missing = "openai is not installed (pip install 'ourvidz[dev]'): its client is not tested"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    import openai

    return openai


@pytest.fixture(scope="module")
def client(openai: Any, running: Any) -> Any:
    """Its client, pointed at the stack."""
    with openai.OpenAI(base_url=running.shim + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_the_openai_client_chats_and_repeats_itself(client: Any) -> None:
    """The same seed, the same text; usage that adds up."""
    both = [
        client.chat.completions.create(model="qwen_instruct", seed=5, temperature=1, **HELLO)
        for _ in range(2)
    ]
    texts = {found.choices[0].message.content for found in both}
    assert len(texts) == 1
    assert texts.pop().strip()
    usage = both[0].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert both[0].choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="qwen_instruct", **{**HELLO, "max_tokens": 2})
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


def test_the_openai_client_streams_what_it_would_have_been_told(client: Any) -> None:
    """Greedy decoding says the same either way."""
    body = {"model": "qwen_instruct", "temperature": 0, **HELLO}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **body))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_openai_client_lists_models_and_hears_errors(openai: Any, client: Any) -> None:
    """Its own exception classes, from the door and from the worker."""
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
