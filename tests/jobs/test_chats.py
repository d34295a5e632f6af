"""Chat payloads: messages, the older prompt form, and sampling parameters."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import CallerError, InvalidPrompt
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import ChatJob

HELLO = [{"role": "user", "content": "hello"}]


def chat(kind: str = "chat_conversation", **fields: Any) -> ChatJob:
    job = parse({"id": "c", "type": kind, **fields}, Defaults())
    assert isinstance(job, ChatJob)
    return job


def error_of(**fields: Any) -> CallerError:
    with pytest.raises(CallerError) as error:
        parse({"id": "c", "type": "chat", **fields}, Defaults())
    return error.value


def roles_and_contents(job: ChatJob) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in job.messages]


def test_the_older_form_becomes_messages_and_nothing_is_added() -> None:
    """No text is added: without a system prompt there is no system message."""
    assert roles_and_contents(chat(prompt="Rivers?")) == [("user", "Rivers?")]
    with_system = chat(prompt="Rivers?", config={"system_prompt": "Be brief."})
    assert roles_and_contents(with_system) == [("system", "Be brief."), ("user", "Rivers?")]


def test_messages_win_over_the_prompt() -> None:
    """`messages` is the newer form."""
    assert roles_and_contents(chat(messages=HELLO, prompt="ignored")) == [("user", "hello")]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ({}, "messages"),
        (HELLO * 201, "messages"),
        ([{"role": "user", "content": "x" * 60_000}] * 2, "messages"),
        (["hello"], "messages[0]"),
        ([*HELLO, {"content": "x"}], "messages[1].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": "\ud83d"}], "messages[0].content"),
        ([{"role": "user", "content": "a\0"}], "messages[0].content"),
    ],
)
def test_an_invalid_message_is_an_error_at_its_index(messages: object, field: str) -> None:
    """In a long conversation the caller needs the index."""
    error = error_of(messages=messages, prompt="not a fallback")
    assert (error.code, error.field) == ("INVALID_PARAMETERS", field)


def test_a_conversation_at_the_limits_is_accepted() -> None:
    """The limits themselves are allowed."""
    assert len(chat(messages=HELLO * 200).messages) == 200
    assert chat(messages=[{"role": "user", "content": "x" * 100_000, "name": "ignored"}])


@pytest.mark.parametrize("messages", [None, ""])
def test_without_messages_the_prompt_is_used(messages: object) -> None:
    """Without either the payload is invalid."""
    assert roles_and_contents(chat(messages=messages, prompt="x")) == [("user", "x")]
    assert isinstance(error_of(messages=messages), InvalidPrompt)


def test_the_defaults_are_the_documented_ones() -> None:
    """Enhancements have a lower default of new tokens."""
    job = chat(messages=HELLO)
    assert (job.max_tokens, job.temperature, job.top_p, job.model) == (512, 0.7, 0.9, "qwen_instruct")
    assert (job.frequency_penalty, job.presence_penalty, job.sfw_mode, job.stream) == (0.0, 0.0, False, False)
    assert chat("chat_enhance", prompt="x").max_tokens == 200
    assert chat("enhance", prompt="x", max_tokens=300).max_tokens == 300


@pytest.mark.parametrize("nested", [False, True])
def test_sampling_values_are_read_at_top_level_and_under_config(nested: bool) -> None:
    """Callers use both forms."""
    values = {"max_tokens": "64", "temperature": 0, "top_p": 1, "frequency_penalty": -2}
    values |= {"presence_penalty": 2, "seed": 5, "model": "qwen_base", "stream": "true"}
    job = chat(messages=HELLO, **({"config": values} if nested else values))
    assert (job.max_tokens, job.temperature, job.top_p) == (64, 0.0, 1.0)
    assert (job.frequency_penalty, job.presence_penalty) == (-2.0, 2.0)
    assert (job.seed, job.seed_drawn, job.model, job.stream) == (5, False, "qwen_base", True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2049),
        ("max_tokens", 1.5),
        ("temperature", 2.1),
        ("temperature", "NaN"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("frequency_penalty", -2.1),
        ("presence_penalty", True),
        ("model", "gpt"),
        ("stream", 1),
        ("callback_url", "http://localhost/"),
    ],
)
def test_sampling_values_outside_their_ranges_are_rejected(name: str, value: object) -> None:
    """The error names the path."""
    assert error_of(messages=HELLO, **{name: value}).field == name


def test_a_chat_job_has_one_result() -> None:
    """`num_images` is read for every type, and a text job has one asset."""
    assert error_of(messages=HELLO, config={"num_images": 3}).field == "config.num_images"


def test_a_chat_job_needs_no_user_but_validates_one() -> None:
    """It stores no files."""
    assert chat(messages=HELLO).user_id is None
    assert error_of(messages=HELLO, user_id="../x").field == "user_id"


def test_stop_strings_are_a_string_or_a_list() -> None:
    """As in the OpenAI API; an empty string or list stands for none."""
    assert chat(prompt="x").stop == chat(prompt="x", stop=None).stop == ()
    assert chat(prompt="x", stop="\n").stop == ("\n",)
    assert chat(prompt="x", stop=["a", "\n"]).stop == ("a", "\n")
    assert chat(prompt="x", config={"stop": "END"}).stop == ("END",)
    assert chat(prompt="x", config={"stop": ["a", "b", "c", "d"]}).stop == ("a", "b", "c", "d")
    assert chat(prompt="x", stop="").stop == chat(prompt="x", stop=[]).stop == ()


@pytest.mark.parametrize(
    "stop", [7, {}, {"a": 1}, [""], [None], ["a", 1], ["a"] * 5, "x" * 101, ["x" * 101], "\0"]
)
def test_other_stop_strings_are_rejected(stop: object) -> None:
    """They must not be ignored silently."""
    error = error_of(prompt="x", stop=stop)
    assert (error.code, error.field) == ("INVALID_PARAMETERS", "stop")
