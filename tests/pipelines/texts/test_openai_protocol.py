"""What is asked of a server that speaks the OpenAI API, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.errors import (
    InternalError,
    InvalidParameters,
    ModelLoadError,
    OurvidzError,
    WorkerUnavailable,
)
from ourvidz.jobs.job import ChatJob
from ourvidz.pipelines.texts.openai_protocol import (
    StreamEvent,
    build_request,
    context_length,
    error_for_status,
    parse_event,
    parse_models,
)

Make = Callable[..., ChatJob]


def event(job: ChatJob, said: Any) -> StreamEvent:
    return parse_event(json.dumps(said).encode(), job)


def test_a_conversation_goes_as_messages_with_everything_the_job_says(chat_job: Make) -> None:
    """The server samples as this worker would."""
    job = chat_job("Hills?", system="Be brief.", temperature=0.4, top_p=0.8, frequency_penalty=0.5,
                   presence_penalty=-0.5, stop=("\n",))  # fmt: skip
    path, body = build_request(job, "large", plain=False)
    assert path == "/chat/completions"
    assert body == {
        "model": "large",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hills?"}],
        "max_tokens": 48,
        "temperature": 0.4,
        "top_p": 0.8,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "seed": 7,
        "stop": ["\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_base_model_is_given_the_plain_text(chat_job: Make) -> None:
    """It has no roles, and an empty list of stop strings is refused by some servers."""
    path, body = build_request(chat_job("Hills?", system="Be brief."), "large", plain=True)
    assert (path, body["prompt"]) == ("/completions", "Be brief.\n\nHills?")
    assert not {"messages", "stop"} & set(body)


def test_events_of_both_kinds_are_read(chat_job: Make) -> None:
    """Text, an end and counts come in separate events, or together."""
    job = chat_job()
    assert event(job, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}) == StreamEvent()
    assert event(job, {"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}]}) == StreamEvent("Hi")
    assert event(job, {"choices": [{"text": "Hi", "finish_reason": "length"}]}) == StreamEvent("Hi", "length")
    assert event(job, {"choices": [{"delta": {}, "finish_reason": "stop"}]}) == StreamEvent(
        finish_reason="stop"
    )
    assert event(job, {"choices": [{"delta": {}, "finish_reason": "eos"}]}) == StreamEvent(
        finish_reason="stop"
    )
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    assert event(job, {"choices": [], "usage": usage}) == StreamEvent(tokens_generated=4, prompt_tokens=9)
    assert event(job, {"choices": [{"delta": {"content": "x"}}], "usage": None}) == StreamEvent("x")


def test_half_a_character_is_no_text(chat_job: Make) -> None:
    """JSON can write one, and neither the ledger nor a callback could."""
    assert event(chat_job(), {"choices": [{"delta": {"content": "a\ud83d"}}]}) == StreamEvent("a?")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": {"message": "maximum context length is 2048"}}', InvalidParameters),
        (400, b'{"error": {"code": "context_length_exceeded"}}', InvalidParameters),
        (422, b"longer than the model's context", InvalidParameters),
        (400, b'{"error": {"message": "unknown field"}}', InternalError),
        (401, b"", ModelLoadError),
        (404, b"", ModelLoadError),
        (408, b"", WorkerUnavailable),
        (429, b"", WorkerUnavailable),
        (500, b"the context was lost", WorkerUnavailable),
        (503, b"", WorkerUnavailable),
    ],
)
def test_a_refusal_says_who_must_act(
    chat_job: Make, status: int, body: bytes, expected: type[OurvidzError]
) -> None:
    """The caller for what is too long, the operator for keys and names, nobody for what passes."""
    assert type(error_for_status(status, body, chat_job())) is expected


def test_a_text_that_is_too_long_is_named_with_rule_and_value(chat_job: Make) -> None:
    """As when the own model refuses it; what was written is not repeated."""
    error = error_for_status(400, b"context", chat_job("secret hill", max_tokens=2000))
    assert error.field == "messages"
    assert "context" in str(error.rule)
    assert error.value == "11 characters and max_tokens 2000"
    assert "secret" not in error.message


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"no json", WorkerUnavailable),
        (b"[]", WorkerUnavailable),
        (b'{"error": "broken"}', WorkerUnavailable),
        (b'{"error": {"code": 400, "message": "context"}}', InvalidParameters),
    ],
)
def test_an_error_in_the_stream_is_an_error(
    chat_job: Make, said: bytes, expected: type[OurvidzError]
) -> None:
    """Servers that have begun to answer cannot change the status any more."""
    with pytest.raises(expected):
        parse_event(said, chat_job())


def test_the_context_is_found_where_servers_tell_it() -> None:
    """They have no common name for it."""
    told = [{"id": "a", "max_model_len": 4096}, {"id": "b", "meta": {"n_ctx_train": 2048}}, {"id": "c"}]
    models = parse_models(json.dumps({"data": told}).encode())
    assert [context_length(models, name) for name in "abcd"] == [4096, 2048, None, None]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": 1}', b'{"data": ["a"]}', b"<html>"])
def test_what_is_no_list_of_models_is_none(body: bytes) -> None:
    """A wrong URL often answers with a page."""
    with pytest.raises(ValueError, match=r"models|Expecting"):
        parse_models(body)
