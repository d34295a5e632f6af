"""Text payloads."""

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


def refused(**fields: Any) -> CallerError:
    with pytest.raises(CallerError) as error:
        parse({"id": "c", "type": "chat", **fields}, Defaults())
    return error.value


def turns(job: ChatJob) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in job.messages]


def test_the_older_form_becomes_messages_and_nothing_is_added() -> None:
    """No prompt text is ever added: without a system prompt there is none."""
    assert turns(chat(prompt="Rivers?")) == [("user", "Rivers?")]
    with_system = chat(prompt="Rivers?", config={"system_prompt": "Be brief."})
    assert turns(with_system) == [("system", "Be brief."), ("user", "Rivers?")]


def test_messages_win_over_the_prompt() -> None:
    """A payload with both is the newer form."""
    assert turns(chat(messages=HELLO, prompt="ignored")) == [("user", "hello")]


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
def test_messages_outside_their_rule_are_refused_by_index(messages: object, field: str) -> None:
    """In a long conversation the index is what the caller needs."""
    error = refused(messages=messages, prompt="not a fallback")
    assert (error.code, error.field) == ("INVALID_PARAMETERS", field)


def test_a_conversation_up_to_the_limits_is_taken() -> None:
    """The limits are bounds, not hints."""
    assert len(chat(messages=HELLO * 200).messages) == 200
    assert chat(messages=[{"role": "user", "content": "x" * 100_000, "name": "ignored"}])


@pytest.mark.parametrize("messages", [None, ""])
def test_absent_messages_leave_the_prompt(messages: object) -> None:
    """And without either there is nothing to answer."""
    assert turns(chat(messages=messages, prompt="x")) == [("user", "x")]
    assert isinstance(refused(messages=messages), InvalidPrompt)


def test_defaults_are_the_documented_ones() -> None:
    """Enhancements are short."""
    job = chat(messages=HELLO)
    assert (job.max_tokens, job.temperature, job.top_p, job.model) == (512, 0.7, 0.9, "qwen_instruct")
    assert (job.frequency_penalty, job.presence_penalty, job.sfw_mode, job.stream) == (0.0, 0.0, False, False)
    assert chat("chat_enhance", prompt="x").max_tokens == 200
    assert chat("enhance", prompt="x", max_tokens=300).max_tokens == 300


@pytest.mark.parametrize("nested", [False, True])
def test_sampling_values_are_read_at_top_level_and_under_config(nested: bool) -> None:
    """Both forms are in the field."""
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
def test_sampling_values_outside_their_ranges_are_refused(name: str, value: object) -> None:
    """At the path they were written."""
    assert refused(messages=HELLO, **{name: value}).field == name


def test_a_conversation_makes_one_text() -> None:
    """num_images is read for every type, and a text job has one asset."""
    assert refused(messages=HELLO, config={"num_images": 3}).field == "config.num_images"


def test_a_conversation_needs_no_user_but_checks_one_that_is_given() -> None:
    """Nothing is stored."""
    assert chat(messages=HELLO).user_id is None
    assert refused(messages=HELLO, user_id="../x").field == "user_id"


def test_stop_strings_are_one_or_a_few() -> None:
    """As in the OpenAI API: a string or a list; an empty one stands for none."""
    assert chat(prompt="x").stop == ()
    assert chat(prompt="x", stop="\n").stop == ("\n",)
    assert chat(prompt="x", config={"stop": ["a", "b", "c", "d"]}).stop == ("a", "b", "c", "d")
    assert chat(prompt="x", stop="").stop == chat(prompt="x", stop=[]).stop == ()


@pytest.mark.parametrize("stop", [7, {}, [""], ["a", 1], ["a"] * 5, "x" * 101, "\0"])
def test_other_stop_strings_are_refused(stop: object) -> None:
    """What cannot be followed must not be ignored."""
    error = refused(prompt="x", stop=stop)
    assert (error.code, error.field) == ("INVALID_PARAMETERS", "stop")


@pytest.mark.parametrize(
    ("given", "stop"),
    [(None, ()), ("", ()), ("END", ("END",)), (["a", "\n"], ("a", "\n")), ([], ())],
)
def test_an_answer_stops_where_its_caller_says(given: Any, stop: tuple[str, ...]) -> None:
    """One text or a few."""
    assert chat(prompt="Rivers?", stop=given).stop == stop
    assert chat(prompt="Rivers?", config={"stop": given}).stop == stop


@pytest.mark.parametrize("given", [7, ["a"] * 5, [""], [None], ["x" * 101], {"a": 1}])
def test_what_cannot_end_an_answer_is_refused(given: Any) -> None:
    """An empty text would end it before it begins."""
    assert refused(prompt="Rivers?", stop=given).field == "stop"
