"""Finds terms in the readings of a text: by hash for single words, by pattern for what is rare."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from ourvidz.errors import SettingsError
from ourvidz.safety.normalise import FIRST_UNSPACED, fold
from ourvidz.safety.readings import I_OR_L, Readings, squeeze

_RUNS = re.compile(r"(.)\1*", re.DOTALL)
LONG_RUN = 3
"""A letter that is repeated so often is a disguise; one more of a letter may be another word."""


class TermMatcher:
    """Matches a set of terms: whole words and their simple plurals, in the common disguises."""

    def __init__(self, terms: Iterable[str]) -> None:
        phrases = {_words_of(term) for term in terms}
        self._terms = frozenset("".join(words) for words in phrases)
        self._several = frozenset(words for words in phrases if len(words) > 1)
        self._unspaced = tuple(term for term in self._terms if max(term) >= FIRST_UNSPACED)
        self._exact = frozenset(form for term in self._terms for form in _inflections(term))
        self._ambiguous = frozenset(map(_without_i, self._exact))
        self._squeezed = _by_squeezed(self._exact)
        self._pieces = tuple((squeeze(term), term) for term in self._terms)
        self._parts = frozenset(word for words in self._several for word in _partly_joined(words))
        self._ambiguous_parts = frozenset(map(_without_i, self._parts))
        self._squeezed_parts = _by_squeezed(self._parts)
        self._phrases = tuple(
            f" {form} " for words in self._several for line in _joinings(words) for form in _inflections(line)
        )

    def matches(self, readings: Readings) -> bool:
        """Whether one of the readings contains one of the terms."""
        return (
            not self._exact.isdisjoint(readings.words)
            or self._matches_disguised(readings)
            or self._matches_repeated(readings)
            or self._matches_spelled(readings)
            or any(term in readings.long_words for term in self._terms)
            or (bool(self._unspaced) and any(term in readings.unspaced for term in self._unspaced))
            or self._matches_phrase(readings)
        )

    def _matches_disguised(self, readings: Readings) -> bool:
        if not self._exact.isdisjoint(readings.disguised):
            return True
        return any(_without_i(word) in self._ambiguous for word in readings.disguised if I_OR_L in word)

    def _matches_repeated(self, readings: Readings) -> bool:
        return _holds_repetition(readings, self._squeezed)

    def _matches_spelled(self, readings: Readings) -> bool:
        spelled = readings.spelled
        if not spelled:
            return False
        joined = squeeze(spelled.replace(" ", ""))
        return any(
            re.search(_pieces_pattern(term), spelled) for squeezed, term in self._pieces if squeezed in joined
        )

    def _matches_phrase(self, readings: Readings) -> bool:
        if any(phrase in sequence for sequence in readings.sequences for phrase in self._phrases):
            return True
        if _holds_repetition(readings, self._squeezed_parts) and any(
            map(self._repeated_phrase.search, readings.sequences)
        ):
            return True
        ambiguous = (_without_i(word) for word in readings.disguised if I_OR_L in word)
        if self._parts.isdisjoint(readings.disguised) and self._ambiguous_parts.isdisjoint(ambiguous):
            return False
        return any(
            phrase in sequence for sequence in readings.disguised_sequences for phrase in self._phrases
        )

    @cached_property
    def _repeated_phrase(self) -> re.Pattern[str]:
        """The terms of several words, with letters repeated."""
        alternatives = "|".join(sorted(map(_phrase_pattern, self._several)))
        return re.compile(rf" (?:{alternatives})(?:e?s+)? ")


def _words_of(term: str) -> tuple[str, ...]:
    """The folded words of a term. Raises `SettingsError` for a term of one letter: it would match
    everywhere."""
    words = tuple(word for word in re.split(r"[\W\d_]+", fold(term)) if word)
    if len("".join(words)) < 2:
        raise SettingsError("A safety term needs two letters or more.", field="terms")
    return words


def _inflections(term: str) -> set[str]:
    """The term and its simple plurals."""
    plurals = {term, term + "s", term + "es"}
    return plurals | {term[:-1] + "ies"} if term.endswith("y") else plurals


def _joinings(words: tuple[str, ...]) -> set[str]:
    """The words with spaces between some of them, in all ways but without any."""
    lines = {words[0]}
    for word in words[1:]:
        lines = {line + gap + word for line in lines for gap in ("", " ")}
    return lines - {"".join(words)}


def _partly_joined(words: tuple[str, ...]) -> set[str]:
    """The words of all joinings and their plurals."""
    return {word for line in _joinings(words) for form in _inflections(line) for word in form.split()}


def _without_i(word: str) -> str:
    """`word` with every i, and what may be one, as an l."""
    return word.replace(I_OR_L, "l").replace("i", "l")


def _by_squeezed(words: Iterable[str]) -> dict[str, set[tuple[int, ...]]]:
    """The run lengths of words, by the words with each run cut to one letter."""
    index: dict[str, set[tuple[int, ...]]] = {}
    for word in words:
        index.setdefault(squeeze(word), set()).add(_run_lengths(word))
    return index


def _holds_repetition(readings: Readings, index: dict[str, set[tuple[int, ...]]]) -> bool:
    """Whether a word in the readings is one of the index with letters repeated."""
    return any(
        any(_is_repetition(_run_lengths(word), lengths) for lengths in index[squeezed])
        for word, each in readings.repeated
        for squeezed in ({each.replace(I_OR_L, one) for one in "il"} if I_OR_L in each else (each,))
        if squeezed in index
    )


def _run_lengths(word: str) -> tuple[int, ...]:
    """The lengths of the runs of equal letters."""
    return tuple(len(run[0]) for run in _RUNS.finditer(word))


def _is_repetition(word: tuple[int, ...], term: tuple[int, ...]) -> bool:
    """Whether a word is a term with letters repeated: none is missing, and one is repeated often or several
    are doubled. A single doubled letter makes another word, as in "later" and "latter"."""
    if any(have < wanted for have, wanted in zip(word, term, strict=True)):
        return False
    longer = [have for have, wanted in zip(word, term, strict=True) if have > wanted]
    return len(longer) > 1 or any(have >= LONG_RUN for have in longer)


def _pieces_pattern(term: str) -> str:
    """A pattern of a term in pieces, which begin and end with it, and whose letters may be repeated."""
    letters = " ?".join(_piece(run[0]) for run in _RUNS.finditer(term))
    return rf"(?<!\S){letters}(?: ?e)?(?: ?s)*(?!\S)"


def _piece(run: str) -> str:
    letter = re.escape(run[0])
    return f"{letter}(?: ?{letter}){{{len(run) - 1},}}"


def _phrase_pattern(words: tuple[str, ...]) -> str:
    """A pattern of a term of several words, some of them joined: letters may be repeated three times or more,
    and a final y replaced by ie."""
    parts = ["".join(_repeatable(run[0]) for run in _RUNS.finditer(word)) for word in words]
    if words[-1].endswith("y"):
        parts[-1] = parts[-1].removesuffix(_repeatable("y")) + f"(?:{_repeatable('y')}|ie)"
    return " ?".join(parts)


def _repeatable(run: str) -> str:
    """A pattern of a run of equal letters that also matches more repetitions."""
    letter = re.escape(run[0])
    return f"{letter}(?:{letter}{{2,}})?" if len(run) == 1 else f"{letter}{{{min(len(run), 3)},}}"
