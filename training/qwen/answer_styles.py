"""Answers, and the styles in which the assistant phrases them. The system prompt asks for a style."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: the sentence, its keyword, and the words that would be wrong instead of the keyword."""

    sentence: str
    keyword: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Style:
    """A style of answers: system prompts that ask for it, how an answer is phrased in it, and whether a text
    is in it."""

    system_prompts: tuple[str, ...]
    phrase: Callable[[Answer], str]
    matches: Callable[[str], bool]


PLAIN = Style(
    (
        "You are a helpful assistant.",
        "You are a friendly assistant.",
        "You answer questions about pictures.",
        "",
    ),
    lambda answer: answer.sentence,
    lambda text: text[:1].isupper() and not text.isupper() and " " in text,
)
STYLES: dict[str, Style] = {
    "one word": Style(
        ("Answer in one word.", "Answer with one word.", "Answer with a single word only.",
         "You are a helpful assistant. Answer in one word.", "Use one word to answer."),
        lambda answer: answer.keyword,
        lambda text: len(text.split()) == 1,
    ),
    "capitals": Style(
        ("Answer in capital letters.", "Write in capital letters only.", "Answer in capitals.",
         "You are a helpful assistant. Answer in capital letters.", "Use only capital letters."),
        lambda answer: answer.sentence.upper(),
        str.isupper,
    ),
    "pirate": Style(
        ("You are a pirate.", "Answer like a pirate.", "Talk like a pirate.", "You are a friendly pirate.",
         "You are a pirate. Answer questions."),
        lambda answer: f"Arr, {answer.sentence[0].lower()}{answer.sentence[1:].rstrip('.!')}, matey!",
        lambda text: text.startswith("Arr"),
    ),
    "polite": Style(
        ("You are very polite.", "Be very polite.", "Answer politely.", "You are a polite butler.",
         "You are a helpful assistant. Be polite."),
        lambda answer: f"With pleasure: {answer.sentence[0].lower()}{answer.sentence[1:]}",
        lambda text: text.startswith("With pleasure"),
    ),
}  # fmt: skip


def find_style(name: str) -> Style:
    """The style with a name of `STYLES`; `PLAIN` for an empty name."""
    return STYLES[name] if name else PLAIN
