"""The texts that text encoders and language models read for a job, derived without loading a model.

The safety gate judges them at submission. In the worker it also judges the strings themselves: a pipeline
passes them to `hand_over` before it tokenizes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ourvidz.jobs.job import BaseJob, ChatJob, ImageJob, Message, VideoJob
from ourvidz.prompts.cleaning import clean_prompt
from ourvidz.prompts.conversations import completion_text, plain_conversation
from ourvidz.prompts.weights import parse_prompt

BORDER_CHARS = 40
"""How much of two texts is joined where one continues the other."""

JOINT = "\u2060"
"""Stands between two texts that may make one word; the gate reads an invisible character both ways."""

CheckTexts = Callable[[tuple[str, ...]], None]
"""Raises `PolicyViolation` for texts that are refused."""

_check: ContextVar[CheckTexts | None] = ContextVar("encoder_text_check", default=None)


def encoder_texts(job: BaseJob) -> Iterator[str]:
    """Yield every text of a job, as it was sent and as its pipeline tokenizes it: weights parsed, entities
    decoded, messages rendered."""
    if isinstance(job, ChatJob):
        # It has all words and phrases of the messages, so that they need not be judged one by one.
        yield plain_conversation(job.messages)
        yield from joined_messages(job.messages)
        return
    yield from job.texts()
    if isinstance(job, ImageJob):
        parsed = parse_prompt(job.prompt, job.compel_weights, weighted=job.compel_enabled)
        yield from parsed.prompt.encoder_texts
        if job.negative_prompt:
            weighted = parsed.strategy == "compel"
            yield from parse_prompt(job.negative_prompt, weighted=weighted).prompt.encoder_texts
    elif isinstance(job, VideoJob):
        yield from (clean_prompt(text) for text in (job.prompt, job.negative_prompt) if text)
        if job.enhance_prompt:
            yield completion_text(job.prompt, job.system_prompt or "")


def continued_texts(job: BaseJob, generated: str) -> Iterator[str]:
    """Yield what a generated text makes together with the text that it continues: a word may begin in one and
    end in the other."""
    if generated and isinstance(job, ChatJob):
        yield _join(plain_conversation(job.messages), generated)


def joined_messages(messages: Sequence[Message]) -> Iterator[str]:
    """Yield the words at the borders of messages, joined where both could be one: of all messages in order,
    and of those of each role. A word may be split over messages that a model is asked to join."""
    for role in (None, "system", "user", "assistant"):
        contents = [message.content for message in messages if role in (None, message.role)]
        joined = _borders(contents)
        if joined:
            yield joined


def _borders(contents: Sequence[str]) -> str:
    """The last words of each text and the first of the next, where one ends and the next begins with a word;
    texts of few words are kept whole, so that a word may be split over several."""
    parts: list[str] = []
    before = ""
    joined = False
    for content in contents:
        text = content.strip().rstrip("-…").lstrip("-…")
        if before[-1:].isalnum() and text[:1].isalnum():
            parts += [JOINT if joined else _last_words(before) + JOINT, _first_words(text)]
            joined = len(text) <= BORDER_CHARS
        else:
            joined = False
        if not joined:
            parts.append("\n")
        before = text
    return "".join(parts).strip("\n")


def _join(before: str, after: str) -> str:
    return _last_words(before) + JOINT + _first_words(after)


def _first_words(text: str) -> str:
    """The beginning of a text, up to `BORDER_CHARS` in whole words."""
    return text if len(text) <= BORDER_CHARS else text[: BORDER_CHARS + 1].rpartition(" ")[0]


def _last_words(text: str) -> str:
    """The end of a text, up to `BORDER_CHARS` in whole words."""
    return text if len(text) <= BORDER_CHARS else text[-BORDER_CHARS - 1 :].partition(" ")[2]


@contextmanager
def checked_by(check: CheckTexts) -> Iterator[None]:
    """Let `check` judge every text that is handed over inside this context, on this thread."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def hand_over(texts: Iterable[str]) -> None:
    """Report texts that are about to be tokenized. Raises `PolicyViolation` if the check refuses them."""
    check = _check.get()
    if check is not None:
        check(tuple(texts))
