"""Weighted prompts in the A1111 syntax, read into fragments.

`(x)` weighs 1.1 times as much, `[x]` 1.1 times less, `(x:1.2)` 1.2 times as much; nesting multiplies. A
bracket that is never closed runs to the end. `\\( \\) \\[ \\] \\\\` are the characters themselves. `BREAK`
starts a new chunk. Everything else is text: a colon outside brackets, a closing bracket that closes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

LOWEST, HIGHEST = 0.0, 2.0
"""Weights are clamped to this range: above it pictures fall apart."""
BRACKET = 1.1
"""What one pair of brackets without a number multiplies or divides by."""
DIGITS = 6
"""Products of 1.1 and 1 / 1.1 are rounded to this many decimals, so that they cancel."""
LARGEST = 1e9
"""Deep nesting stays a number."""
SEPARATOR = ", "

_MARK = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|:\s*+(?P<weight>[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++))\s*+\)"
    r"|(?P<mark>[()\[\]:])"
    r"|(?P<text>[^\\()\[\]:]+|\\)"
)
_BREAK = re.compile(r"\bBREAK\b")

Strategy = Literal["compel", "fallback", "none"]


@dataclass(frozen=True, slots=True)
class Fragment:
    """A text and its weight, 0 to 2."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Section:
    """The part of a prompt between two BREAKs. `text` is its words in order, without syntax."""

    fragments: tuple[Fragment, ...]
    text: str


@dataclass(frozen=True, slots=True)
class WeightedPrompt:
    """A prompt without its syntax. Each section begins a chunk of its own; blank ones are left out."""

    sections: tuple[Section, ...]

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """The fragments of all sections."""
        return tuple(fragment for section in self.sections for fragment in section.fragments)

    @property
    def text(self) -> str:
        """The clean text: the words without syntax."""
        return " ".join(section.text for section in self.sections)


@dataclass(frozen=True, slots=True)
class Reading:
    """A parsed prompt, the strategy to encode it, and the reason if its weights are not used."""

    prompt: WeightedPrompt
    strategy: Strategy
    reason: str | None = None


def read(prompt: str, weights: str | None = None, *, weighted: bool) -> Reading:
    """Parse a prompt, with `weights` appended to it.

    Without `weighted` it is taken literally (strategy `none`). Unusable weights also make it literal, with
    the strategy `fallback` and the reason.
    """
    if not weighted:
        return Reading(literal(prompt), "none")
    reason = unusable(weights) if weights else None
    if reason is not None:
        return Reading(literal(prompt), "fallback", reason)
    parsed = parse(prompt)
    if prompt.strip() and not parsed.sections:
        return Reading(literal(prompt), "fallback", "Nothing is left of the prompt without its brackets.")
    whole = _appended(parsed, parse(weights)) if weights else parsed
    return Reading(whole if whole.sections else literal(prompt), "compel")


def literal(text: str) -> WeightedPrompt:
    """A prompt of one fragment: brackets, colons and BREAK count as text."""
    return WeightedPrompt((Section((Fragment(text),), text),))


def parse(text: str) -> WeightedPrompt:
    """Parse the weight syntax. Any text is accepted; invalid syntax counts as text."""
    sections: list[list[Fragment]] = [[]]
    for piece, weight in _weighed(text):
        first, *further = _BREAK.split(piece)
        sections[-1].append(Fragment(first, weight))
        sections.extend([Fragment(after, weight)] for after in further)
    return WeightedPrompt(tuple(found for found in map(_section, sections) if found.fragments))


def clean(text: str) -> str:
    """The words of a prompt without syntax."""
    return parse(text).text


def unusable(weights: str) -> str | None:
    """The reason why a list of weights cannot be used; None if it can.

    It is stricter than `parse`, which takes `(x:abc)` for the words "x:abc" at weight 1.1: here a colon in
    brackets must be followed by a number. The reason does not quote the text.
    """
    unread = next((bracket for bracket in _brackets(weights) if bracket.unread), None)
    if unread is not None:
        return f"The bracket at character {unread.at + 1} of the weights has a colon but no readable weight."
    if not re.search(r"[^\s,]", clean(weights)):
        return "Nothing is left of the weights without their brackets."
    return None


@dataclass(slots=True)
class _Bracket:
    """An opening bracket: its position, its factor, and whether it has a colon without a readable weight."""

    at: int
    factor: float
    unread: bool = False


def _brackets(text: str) -> list[_Bracket]:
    """The opening brackets, each with the factor that its closing bracket decides.

    Round and square brackets are matched apart from each other, as A1111 does.
    """
    found: list[_Bracket] = []
    rounds: list[_Bracket] = []
    squares: list[_Bracket] = []
    for token in _MARK.finditer(text):
        mark = token["mark"]
        if mark in ("(", "["):
            bracket = _Bracket(token.start(), BRACKET if mark == "(" else 1 / BRACKET)
            found.append(bracket)
            (rounds if mark == "(" else squares).append(bracket)
        elif token["weight"] and rounds:
            closed = rounds.pop()
            closed.factor, closed.unread = _factor(token["weight"]), False
        elif mark == ")" and rounds:
            rounds.pop()
        elif mark == "]" and squares:
            squares.pop()
        elif (mark == ":" or token["weight"]) and (rounds or squares):
            innermost = max(rounds[-1:] + squares[-1:], key=lambda bracket: bracket.at)
            innermost.unread = True
    return found


def _factor(digits: str) -> float:
    return min(max(0.0, float(digits)), LARGEST)


def _weighed(text: str) -> Iterator[tuple[str, float]]:
    """Yield the text without brackets in pieces of equal weight."""
    factors = {bracket.at: bracket.factor for bracket in _brackets(text)}
    # Products of the open brackets: brackets of one kind nest, so each kind is a stack.
    rounds, squares = [1.0], [1.0]
    piece, weight = "", 1.0
    for token in _MARK.finditer(text):
        mark = token["mark"]
        if mark == "(":
            rounds.append(min(rounds[-1] * factors[token.start()], LARGEST))
        elif mark == "[":
            squares.append(squares[-1] * factors[token.start()])
        elif len(rounds) > 1 and (mark == ")" or token["weight"]):
            rounds.pop()
        elif len(squares) > 1 and mark == "]":
            squares.pop()
        else:
            now = round(min(max(LOWEST, rounds[-1] * squares[-1]), HIGHEST), DIGITS)
            if now != weight:
                yield piece, weight
                piece, weight = "", now
            piece += token["escaped"] or token[0]
    yield piece, weight


def _section(fragments: Iterable[Fragment]) -> Section:
    """A section of the fragments that are not blank. In `text`, words separated only by a bracket get a
    space."""
    text = ""
    kept = []
    for fragment in fragments:
        glued = text[-1:].isalnum() and fragment.text[:1].isalnum()
        text += f" {fragment.text}" if glued else fragment.text
        if fragment.text.strip():
            kept.append(fragment)
    return Section(tuple(kept), text.strip())


def _appended(prompt: WeightedPrompt, weights: WeightedPrompt) -> WeightedPrompt:
    """Append the weights to the prompt, separated by a comma."""
    if not prompt.sections:
        return weights
    *before, last = prompt.sections
    first, *after = weights.sections
    joint = Section(
        (*last.fragments, Fragment(SEPARATOR), *first.fragments), f"{last.text}{SEPARATOR}{first.text}"
    )
    return WeightedPrompt((*before, joint, *after))
