"""Requests to and responses from a server with the OpenAI API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ourvidz.errors import (
    InternalError,
    InvalidParameters,
    ModelLoadError,
    OurvidzError,
    WorkerUnavailable,
)
from ourvidz.pipelines.texts.openai_protocol import (
    StreamEvent,
    build_request,
    context_length,
    error_for_status,
    parse_event,
    parse_models,
)
from tests.factories import chat_job


def parse(content: Any) -> StreamEvent:
    return parse_event(json.dumps(content).encode(), chat_job())


def test_a_chat_request_has_the_messages_and_all_sampling_parameters() -> None:
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


def test_a_base_model_gets_the_plain_text() -> None:
    """It has no roles. Without stop strings the field is omitted: some servers refuse an empty list."""
    path, body = build_request(chat_job("Hills?", system="Be brief."), "large", plain=True)
    assert (path, body["prompt"]) == ("/completions", "Be brief.\n\nHills?")
    assert not {"messages", "stop"} & set(body)


def test_events_of_chat_and_text_completions_are_parsed() -> None:
    """Text, finish reason and token counts come in separate events or together."""
    assert parse({"choices": [{"delta": {"role": "assistant", "content": ""}}]}) == StreamEvent()
    assert parse({"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}]}) == StreamEvent("Hi")
    assert parse({"choices": [{"text": "Hi", "finish_reason": "length"}]}) == StreamEvent("Hi", "length")
    for finish_reason in ("stop", "eos"):
        event = parse({"choices": [{"delta": {}, "finish_reason": finish_reason}]})
        assert event == StreamEvent(finish_reason="stop")
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    expected = StreamEvent(tokens_generated=4, prompt_tokens=9)
    assert parse({"choices": [], "usage": usage}) == expected
    assert parse({"choices": [{"delta": {"content": "x"}}], "usage": None}) == StreamEvent("x")


def test_lone_surrogates_are_replaced() -> None:
    """JSON can contain them; neither the ledger nor a callback can."""
    assert parse({"choices": [{"delta": {"content": "a\ud83d"}}]}) == StreamEvent("a?")


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
def test_the_error_type_of_a_status_tells_who_must_act(
    status: int, body: bytes, expected: type[OurvidzError]
) -> None:
    """The caller for a text that is too long, the operator for keys and names, nobody for an outage."""
    assert type(error_for_status(status, body, chat_job())) is expected


def test_the_error_for_a_long_text_has_rule_and_value() -> None:
    """As the error of a local model. It does not quote the text."""
    error = error_for_status(400, b"context", chat_job("secret hill", max_tokens=2000))
    assert error.field == "messages"
    assert "context" in str(error.rule)
    assert error.value == "11 characters and max_tokens 2000"
    assert "secret" not in error.message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"no json", WorkerUnavailable),
        (b"[]", WorkerUnavailable),
        (b'{"error": "broken"}', WorkerUnavailable),
        (b'{"error": {"code": 400, "message": "context"}}', InvalidParameters),
    ],
)
def test_an_error_event_raises_the_error_of_its_code(data: bytes, expected: type[OurvidzError]) -> None:
    """A server that has begun to stream cannot change the HTTP status any more."""
    with pytest.raises(expected):
        parse_event(data, chat_job())


def test_the_context_length_is_read_from_the_fields_of_known_servers() -> None:
    """There is no standard name for it."""
    listing = [{"id": "a", "max_model_len": 4096}, {"id": "b", "meta": {"n_ctx_train": 2048}}, {"id": "c"}]
    models = parse_models(json.dumps({"data": listing}).encode())
    assert [context_length(models, name) for name in "abcd"] == [4096, 2048, None, None]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": 1}', b'{"data": ["a"]}', b"<html>"])
def test_a_malformed_list_of_models_is_a_value_error(body: bytes) -> None:
    """The server at a wrong URL often answers with an HTML page."""
    with pytest.raises(ValueError, match=r"models|Expecting"):
        parse_models(body)
