"""The OpenAI routes, with plain requests and with the `openai` client."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import Any

import pytest

from ourvidz.errors import (
    CONTEXT_EXCEEDED,
    InvalidParameters,
    JobTimeout,
    OutOfMemory,
    PolicyViolation,
    WorkerLost,
)

HELLO: dict[str, Any] = {
    "model": "qwen_instruct",
    "messages": [{"role": "user", "content": "What is a tide?"}],
}
TEXT = "A tide is moving water."
TOO_LONG = InvalidParameters("messages must be shorter.", field="messages", kind=CONTEXT_EXCEEDED)


def complete(shim, body: Any, status: int = 200, **more: Any) -> dict[str, Any]:
    """Post a completion request, check the status, return the document."""
    answer = shim.client.post("/v1/chat/completions", json=body, **more)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def test_a_completion_has_the_fields_of_the_openai_api(shim, chat_worker) -> None:
    """Its id is the id of a job."""
    chat_worker(shim.ledger)
    completion = complete(shim, HELLO)
    assert completion.pop("created") > 1_700_000_000
    completion_id = completion.pop("id")
    assert completion_id.startswith("chatcmpl-")
    assert completion == {
        "object": "chat.completion",
        "model": "qwen_instruct",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }
    assert shim.client.get(f"/jobs/{completion_id}").json()["status"] == "completed"


def test_the_parameters_are_translated_into_those_of_a_job(shim, chat_worker) -> None:
    """Null counts as absent; `max_completion_tokens` wins; parts of a content are joined."""
    worker = chat_worker(shim.ledger)
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a tide?"}]
    body = {
        "model": "qwen_base",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "ada"},
        ],
        "max_completion_tokens": 9,
        "max_tokens": 99,
        "temperature": None,
        "top_p": 0.5,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "seed": 11,
        "stop": ["\n", "END"],
        "n": 1,
        "tools": [],
        "logprobs": False,
        "response_format": {"type": "text"},
        "user": "somebody",
        "metadata": {"user_id": "not an id"},
    }
    complete(shim, body)
    job = worker.job
    assert [(m.role, m.content) for m in job.messages] == [
        ("system", "Be brief."),
        ("user", "What is a tide?"),
    ]
    assert (job.model, job.max_tokens, job.temperature, job.top_p) == ("qwen_base", 9, 0.7, 0.5)
    assert (job.frequency_penalty, job.presence_penalty, job.seed) == (0.1, 0.2, 11)
    assert job.stop == ("\n", "END")


def test_stop_may_be_a_single_string(shim, chat_worker) -> None:
    """The OpenAI API accepts a string or a list."""
    worker = chat_worker(shim.ledger)
    complete(shim, {**HELLO, "stop": "END"})
    assert worker.job.stop == ("END",)


@pytest.mark.parametrize(
    ("finish", "expected"), [("stop", "stop"), ("length", "length"), ("timeout", "length")]
)
def test_finish_reasons_are_those_of_the_openai_api(shim, chat_worker, finish, expected) -> None:
    """It has no reason for a deadline: `length` stands for it."""
    chat_worker(shim.ledger, finish=finish)
    assert complete(shim, HELLO)["choices"][0]["finish_reason"] == expected


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "gpt-4o"}, 404, "model", "model_not_found"),
        ({"model": ["x"]}, 404, "model", "model_not_found"),
        ({"n": 2}, 400, "n", "invalid_value"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        ({"messages": None}, 400, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role", "invalid_value"),
        ({"messages": ["a"]}, 400, "messages[0]", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages[0].content[0]",
            "invalid_value",
        ),
        ({"max_completion_tokens": 4096}, 400, "max_completion_tokens", "invalid_value"),
        ({"temperature": 3}, 400, "temperature", "invalid_value"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "invalid_value"),
        ({"logprobs": True}, 400, "logprobs", "invalid_value"),
        ({"logit_bias": {"50": -100}}, 400, "logit_bias", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "invalid_value"),
    ],
)
def test_an_invalid_request_gets_an_error_object(shim, change, status, param, code) -> None:
    """The client raises the matching exception, and `param` names the field."""
    error = complete(shim, {**HELLO, **change}, status)["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert shim.ledger.page().records == []


def test_a_conversation_that_exceeds_the_context_has_that_apis_code(shim, chat_worker) -> None:
    """Clients shorten the conversation at this code. Only the worker can count the tokens."""
    chat_worker(shim.ledger, "", error=TOO_LONG)
    error = complete(shim, HELLO, 400)["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "messages",
        "context_length_exceeded",
    )
    (record,) = shim.ledger.page().records
    error = shim.client.get(f"/jobs/{record.job_id}").json()["error"]
    assert error.keys() == {"code", "message", "retryable"}
    assert error["code"] == "INVALID_PARAMETERS"


def test_every_error_under_v1_is_an_error_object(open_shim) -> None:
    """Without a key, with a wrong body, method or path, or with a body that is too large."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:chat j:k:jobs", OURVIDZ_BODY_LIMIT_BYTES=1024)
    key = {"Authorization": "Bearer b"}
    route = "/v1/chat/completions"
    answers = [
        shim.client.post(route, json=HELLO),
        shim.client.post(route, json=HELLO, headers={"X-API-Key": "k"}),
        shim.client.post(route, content=b"{", headers=key),
        shim.client.post(route, content=b"[]", headers=key),
        shim.client.post(route, content=b"x" * 2000, headers=key),
        shim.client.get(route, headers=key),
        shim.client.get("/v1/files", headers=key),
        shim.client.get("/v1/models/gpt-4o", headers=key),
    ]
    assert [answer.status_code for answer in answers] == [401, 403, 400, 400, 413, 405, 404, 404]
    for answer in answers:
        assert answer.headers["content-type"] == "application/json"
        assert answer.json().keys() == {"error"}
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answers[0].json()["error"]["code"] == "invalid_api_key"
    assert answers[0].headers["www-authenticate"] == "Bearer"


def test_what_only_an_operator_can_mend_is_not_repeated(shim, chat_worker) -> None:
    """That client repeats any 5xx twice: a request that ran into a time limit would take three of them."""
    chat_worker(shim.ledger, "", error=JobTimeout("too slow"))
    answer = shim.client.post("/v1/chat/completions", json=HELLO)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")


def test_a_stream_is_chunks_that_end_with_done(shim, chat_worker) -> None:
    """The role comes first, the reason last, the usage behind it when it was asked for."""
    chat_worker(shim.ledger)
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    lines = shim.client.post("/v1/chat/completions", json=body).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    *parts, last, usage = chunks
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": "A "}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in parts) == TEXT
    assert all(chunk["usage"] is None for chunk in (*parts, last))
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 12)


def test_a_stream_without_options_has_no_usage(shim, chat_worker) -> None:
    """Older clients fail on a chunk without choices."""
    chat_worker(shim.ledger)
    text = shim.client.post("/v1/chat/completions", json={**HELLO, "stream": True}).text
    assert "usage" not in text
    assert text.count("finish_reason") == 6


def test_the_models_are_listed(shim) -> None:
    """`created` is the start of the worker that serves them."""
    models = shim.client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["qwen_instruct", "qwen_base"]
    assert models["data"][0]["created"] == 0
    shim.register_worker(id="chat@host", family="chat", queue="chat_queue", started_at=1_790_000_000.5)
    one = shim.client.get("/v1/models/qwen_base").json()
    assert one == {"id": "qwen_base", "object": "model", "created": 1_790_000_000, "owned_by": "ourvidz"}


# With the openai client


@pytest.fixture
def openai() -> Any:
    """The `openai` package."""
    if importlib.util.find_spec("openai") is None:
        missing = "openai is not installed (pip install 'ourvidz[dev]'): its client is not tested"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    import openai

    return openai


@pytest.fixture
def client(openai, shim, serve) -> Any:
    """An OpenAI client with the URL of a shim."""
    with openai.OpenAI(base_url=serve(shim) + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_the_openai_client_gets_a_completion(shim, chat_worker, client) -> None:
    """Only the base URL differs."""
    chat_worker(shim.ledger)
    completion = client.chat.completions.create(**HELLO, max_tokens=32, temperature=0)
    assert completion.choices[0].message.content == TEXT
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == 12


def test_the_openai_client_streams_a_completion(shim, chat_worker, client) -> None:
    """The text arrives in chunks, the usage last."""
    chat_worker(shim.ledger)
    chunks = list(
        client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage.completion_tokens == 5


def test_the_openai_client_lists_and_reads_models(client) -> None:
    """As its documentation shows."""
    assert [model.id for model in client.models.list()] == ["qwen_instruct", "qwen_base"]
    assert client.models.retrieve("qwen_base").owned_by == "ourvidz"


def test_the_openai_client_raises_the_matching_exceptions(
    openai, open_shim, shim, chat_worker, client, serve
) -> None:
    """Code that handles that API's errors works unchanged."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**HELLO, "model": "gpt-4o"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**HELLO, n=2)
    assert wrong.value.param == "n"
    guarded = open_shim(OURVIDZ_API_KEYS="a:b:chat j:k:jobs")
    url = serve(guarded) + "/v1"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="none", max_retries=0).models.list()
    with pytest.raises(openai.PermissionDeniedError):
        openai.OpenAI(base_url=url, api_key="k", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("error", "status"), [(WorkerLost("gone"), 503), (PolicyViolation("no"), 400), (OutOfMemory("full"), 500)]
)
def test_the_openai_client_raises_the_error_of_a_job(
    openai, shim, chat_worker, client, error, status
) -> None:
    """With its status, when no text was streamed."""
    chat_worker(shim.ledger, "", error=error)
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as failed:
            client.chat.completions.create(**HELLO, stream=stream)
        assert failed.value.status_code == status
        assert failed.value.body["message"] == error.message


def test_the_openai_client_raises_an_error_after_part_of_the_text(openai, shim, chat_worker, client) -> None:
    """A failed stream must not look like a complete one."""
    chat_worker(shim.ledger, "A tide", error=OutOfMemory("no room"))
    with pytest.raises(openai.APIError, match="no room"):
        list(client.chat.completions.create(**HELLO, stream=True))


def test_closing_the_openai_clients_stream_cancels_the_job(shim, chat_worker, client) -> None:
    """Closing a stream is a disconnect."""
    worker = chat_worker(shim.ledger, endless=True)
    stream = client.chat.completions.create(**HELLO, stream=True)
    assert next(iter(stream)).choices[0].delta.content == "A "
    stream.close()
    assert worker.cancelled.wait(1.0)
