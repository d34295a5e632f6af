"""Parser of the A1111 prompt weight syntax.

`(x)` multiplies the weight by 1.1, `[x]` divides it by 1.1, `(x:1.2)` multiplies it by 1.2; nested factors
multiply. An unclosed bracket extends to the end. `\\( \\) \\[ \\] \\\\` are escaped brackets and backslashes.
`BREAK` starts a new chunk. Everything else is text, such as a colon outside brackets or an unmatched `)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

LOWEST, HIGHEST = 0.0, 2.0
"""Weights are clamped to this range; higher weights produce distorted images."""
BRACKET = 1.1
"""Factor of a pair of brackets without an explicit weight."""
DIGITS = 6
"""Products of 1.1 and 1 / 1.1 are rounded to this many decimals, so that they cancel."""
LARGEST = 1e9
"""Upper bound of factors and their products; prevents overflow in deep nesting."""
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
    """The part of a prompt between two BREAKs. `text` is its text without the weight syntax."""

    fragments: tuple[Fragment, ...]
    text: str


@dataclass(frozen=True, slots=True)
class WeightedPrompt:
    """A parsed prompt. Each section starts a new chunk; blank sections are omitted."""

    sections: tuple[Section, ...]

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """The fragments of all sections."""
        return tuple(fragment for section in self.sections for fragment in section.fragments)

    @property
    def text(self) -> str:
        """The text of the prompt without the weight syntax."""
        return " ".join(section.text for section in self.sections)

    @property
    def encoder_texts(self) -> tuple[str, ...]:
        """What the text encoders read: the text that is pooled, and each section as its joined fragments."""
        joined = ("".join(fragment.text for fragment in section.fragments) for section in self.sections)
        return (self.text, *joined)


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A parsed prompt, its encoding strategy, and the reason for strategy `fallback`."""

    prompt: WeightedPrompt
    strategy: Strategy
    reason: str | None = None


def parse_prompt(prompt: str, weights: str | None = None, *, weighted: bool) -> ParsedPrompt:
    """Parse a prompt, with `weights` appended to it.

    If `weighted` is false, the prompt is literal text (strategy `none`). If the weights are invalid, it is
    literal text with strategy `fallback` and the reason.
    """
    if not weighted:
        return ParsedPrompt(literal(prompt), "none")
    reason = weights_error(weights) if weights else None
    if reason is not None:
        return ParsedPrompt(literal(prompt), "fallback", reason)
    parsed = parse(prompt)
    if prompt.strip() and not parsed.sections:
        return ParsedPrompt(
            literal(prompt), "fallback", "Nothing is left of the prompt without its brackets."
        )
    combined = _append_weights(parsed, parse(weights)) if weights else parsed
    return ParsedPrompt(combined if combined.sections else literal(prompt), "compel")


def literal(text: str) -> WeightedPrompt:
    """Return a prompt of one fragment in which brackets, colons and BREAK are text."""
    return WeightedPrompt((Section((Fragment(text),), text),))


def parse(text: str) -> WeightedPrompt:
    """Parse the weight syntax. Any text is accepted; invalid syntax is kept as text."""
    sections: list[list[Fragment]] = [[]]
    for piece, weight in _weighted_text(text):
        first, *further = _BREAK.split(piece)
        sections[-1].append(Fragment(first, weight))
        sections.extend([Fragment(after, weight)] for after in further)
    return WeightedPrompt(tuple(brackets for brackets in map(_section, sections) if brackets.fragments))


def clean(text: str) -> str:
    """Return the text of a prompt without the weight syntax."""
    return parse(text).text


def weights_error(weights: str) -> str | None:
    """Return why a list of weights is invalid, or None if it is valid.

    Stricter than `parse`, which reads `(x:abc)` as the text "x:abc" at weight 1.1: a colon in brackets must
    be followed by a number. The reason does not quote the text.
    """
    invalid = next((bracket for bracket in _brackets(weights) if bracket.invalid_weight), None)
    if invalid is not None:
        return f"The bracket at character {invalid.at + 1} of the weights has a colon but no readable weight."
    if not re.search(r"[^\s,]", clean(weights)):
        return "Nothing is left of the weights without their brackets."
    return None


@dataclass(slots=True)
class _Bracket:
    """An opening bracket: its position, its factor, and whether it has a colon without a readable weight."""

    at: int
    factor: float
    invalid_weight: bool = False


def _brackets(text: str) -> list[_Bracket]:
    """Return the opening brackets in order, each with the factor set by its closing bracket.

    Round and square brackets are matched independently, as in A1111.
    """
    brackets: list[_Bracket] = []
    rounds: list[_Bracket] = []
    squares: list[_Bracket] = []
    for token in _MARK.finditer(text):
        mark = token["mark"]
        if mark in ("(", "["):
            bracket = _Bracket(token.start(), BRACKET if mark == "(" else 1 / BRACKET)
            brackets.append(bracket)
            (rounds if mark == "(" else squares).append(bracket)
        elif token["weight"] and rounds:
            closed = rounds.pop()
            closed.factor, closed.invalid_weight = _factor(token["weight"]), False
        elif mark == ")" and rounds:
            rounds.pop()
        elif mark == "]" and squares:
            squares.pop()
        elif (mark == ":" or token["weight"]) and (rounds or squares):
            innermost = max(rounds[-1:] + squares[-1:], key=lambda bracket: bracket.at)
            innermost.invalid_weight = True
    return brackets


def _factor(digits: str) -> float:
    """The weight of a number, clamped to the valid range."""
    return min(max(0.0, float(digits)), LARGEST)


def _weighted_text(text: str) -> Iterator[tuple[str, float]]:
    """Yield runs of text of equal weight, without brackets, as (text, weight)."""
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
    """Build a section of the non-blank fragments; `text` has a space where only a bracket separated words."""
    text = ""
    visible = []
    for fragment in fragments:
        needs_space = text[-1:].isalnum() and fragment.text[:1].isalnum()
        text += f" {fragment.text}" if needs_space else fragment.text
        if fragment.text.strip():
            visible.append(fragment)
    return Section(tuple(visible), text.strip())


def _append_weights(prompt: WeightedPrompt, weights: WeightedPrompt) -> WeightedPrompt:
    """Append the weights to the last section of the prompt, separated by a comma."""
    if not prompt.sections:
        return weights
    *before, last = prompt.sections
    first, *after = weights.sections
    joint = Section(
        (*last.fragments, Fragment(SEPARATOR), *first.fragments), f"{last.text}{SEPARATOR}{first.text}"
    )
    return WeightedPrompt((*before, joint, *after))
