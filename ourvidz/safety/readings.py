"""How a text may be read: with its weights and tags removed, its disguises undone, its spelled words joined.

A text has several readings because a disguise is ambiguous: a `1` may be an i or an l, a full stop may end a
word or split it. Each step is a pass over the whole text or over its distinct words, so that the time is
linear in the length.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from ourvidz.safety.normalise import FIRST_UNSPACED, HIDDEN, LETTER, fold_with_hidden

I_OR_L = "I"
"""Stands for a character that may be an i or an l. No folded text has a capital."""
LONG_WORD = 64
"""A word of more letters is searched for terms inside it: tokenizers cut it into pieces."""

_SYNTAX = re.compile(r"[()\[\]\\<]|BREAK|AND")
_TAG = re.compile(r"<[^<>]{0,200}>")
_SEPARATOR = re.compile(r"(?<!\w)(?:BREAK|AND)(?!\w)")
_MARK = re.compile(r":\s*+[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)\s*+\)|[()\[\]]|\\(?=[()\[\]\\])")

_DIGITS = {"0": "o", "1": I_OR_L, "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g"}
_DIGIT_LETTERS = {ord(digit): letter for digit, letter in _DIGITS.items()}
_SYMBOLS = {"@": "a", "$": "s", "€": "e", "£": "l", "¢": "c", "+": "t", "!": I_OR_L, "|": I_OR_L}
_SYMBOL = re.compile(r"(?<=\w)[!|+€£¢](?=\w)|[@$](?=\w)|(?<=\w)[@$]")
_DISGUISE = re.compile(r"[0-9@$€£¢+!|]")
_INSIDE = re.compile(r"[^\w\s,;:!?،、。，；：！？](?<=\w.)[^\w\s,;:!?،、。，；：！？]*+(?=\w)")
"""What splits a word and does not end it. Commas and the like part words, also without a space."""
_EDGES = ".,;:!?()[]{}'\"“”‘’*«»"

_ASCII_WORD = re.compile(f"[a-z{I_OR_L}]+")
_WORD = re.compile(f"{LETTER}+")
_DIGIT_CHUNK = re.compile(r"\S+")
_ANY_LETTER = re.compile(LETTER)
_SPELLED = re.compile(r"(?:(?<= )\S{1,2} ){3,}")
_LONE_DIGIT = re.compile(r"\d(?!\w)(?<!\w.)")
_PARTING = re.compile(r"[^\w\0]+|[\d_]+")
_HIDDEN_RUN = re.compile("\0+")
_SAME_LETTER = re.compile(r"([^\W\d_])(?: ?\1){3,}")
"""A letter more often than three times in a row, in whatever pieces; patterns would take quadratic time."""
_REPEATED = re.compile(r"([^\W\d_])\1")
_REPEATS = re.compile(r"([^\W\d_])\1+")
_SPLIT_UNSPACED = re.compile(
    rf"(?<=[{FIRST_UNSPACED}-\U0010ffff])[\s\-_*.·・|/~]{{1,4}}(?=[{FIRST_UNSPACED}-\U0010ffff])"
)


def without_syntax(text: str) -> str:
    """`text` without prompt weights and brackets, its pieces joined; the separators BREAK and AND become
    spaces. Whatever the weight parser joins is joined here too."""
    return _SEPARATOR.sub(" ", _MARK.sub("", _SEPARATOR.sub(" ", text)))


def _plain_readings(text: str) -> Iterator[str]:
    """Yield `text`, without its HTML entities, without its syntax, and also without tags as `<lora:…>`."""
    yield text
    if "&" in text:
        # Twice, as the encoder of Wan does: `q&amp;#117;ux` is a word there.
        decoded = html.unescape(html.unescape(text))
        if decoded != text:
            yield (text := decoded)
    if _SYNTAX.search(text):
        plain = without_syntax(text)
        if plain != text:
            yield plain
        if "<" in text:
            # Not instead of the text with them: what stands between `<` and `>` is read by the encoders.
            yield without_syntax(_TAG.sub("", text))


@dataclass(frozen=True)
class Readings:
    """The readings of one text. `folded` are its folds, without and with what encoders remove; `parted` those
    in which `HIDDEN` marks the places where a word may be parted."""

    folded: tuple[str, ...]
    parted: tuple[str, ...] = ()

    @cached_property
    def sequences(self) -> tuple[str, ...]:
        """The words of each fold in their order, each between spaces."""
        return tuple(dict.fromkeys(f" {' '.join(words(text))} " for text in self.folded))

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the folds."""
        return frozenset(word for sequence in self.sequences for word in sequence.split())

    @cached_property
    def disguised(self) -> frozenset[str]:
        """The words that appear when digits and symbols are read as letters and words split by punctuation
        are joined; `I_OR_L` in them may be an i or an l."""
        found: set[str] = set()
        seen: set[str] = set()
        for text in self.folded:
            distinct = set(text.split()) - seen
            seen |= distinct
            chunks = [
                chunk for chunk in distinct if not chunk.strip(_EDGES).isalpha() and _ANY_LETTER.search(chunk)
            ]
            joined = "\n".join(chunks)
            for variant in {joined, *as_letters(joined)}:
                found.update(words(variant), words(without_splits(variant)))
        return frozenset(found - self.words)

    @cached_property
    def repeated(self) -> tuple[tuple[str, str], ...]:
        """The words that repeat a letter, each with its runs of equal letters cut to one."""
        pool = [*self.words, *self.disguised]
        joined = "\n".join(pool)
        if not _REPEATED.search(joined):
            return ()
        squeezed = squeeze(joined).split("\n")
        return tuple(pair for pair in zip(pool, squeezed, strict=True) if pair[0] != pair[1])

    @cached_property
    def spelled(self) -> str:
        """What is written in pieces of one or two letters, one line each, its pieces apart by a space."""
        lone_digits = (text.translate(_DIGIT_LETTERS) for text in self.folded if _LONE_DIGIT.search(text))
        sequences = (*self.sequences, *(f" {' '.join(words(text))} " for text in lone_digits))
        lines = list({run for sequence in sequences for run in _SPELLED.findall(sequence)})
        for text in self.parted:
            pieces = _PARTING.sub("\n", text)
            lines += [_HIDDEN_RUN.sub(" ", line) for line in set(pieces.split("\n")) if HIDDEN in line]
        lines = [_SAME_LETTER.sub(r"\1 \1 \1", line) for line in lines]
        lines += [line.replace(I_OR_L, one) for line in lines if I_OR_L in line for one in "il"]
        return "\n".join(lines)

    @cached_property
    def long_words(self) -> str:
        """The words that are too long to be any, one a line."""
        return "\n".join(word for word in self.words if len(word) > LONG_WORD)

    @cached_property
    def unspaced(self) -> str:
        """The folds that have letters of scripts without spaces, as they are and joined where they are
        split."""
        texts = [text for text in self.folded if not text.isascii() and max(text) >= FIRST_UNSPACED]
        return "\n".join([*texts, *(_SPLIT_UNSPACED.sub("", text) for text in texts)])

    @cached_property
    def spelled_numbers(self) -> tuple[str, ...]:
        """The folds with the digits inside of words replaced by letters: `s1xteen` is a number word."""

        def undo(chunk: re.Match[str]) -> str:
            return chunk[0].translate(_DIGIT_LETTERS) if _ANY_LETTER.search(chunk[0]) else chunk[0]

        texts = [_DIGIT_CHUNK.sub(undo, text).replace(I_OR_L, one) for text in self.folded for one in "il"]
        return tuple(dict.fromkeys(texts))

    @cached_property
    def disguised_sequences(self) -> tuple[str, ...]:
        """The words of each fold in their order, with the disguises undone."""
        variants = (
            variant
            for text in self.folded
            for base in (text, *as_letters(text))
            for one in ("il" if I_OR_L in base else "l")
            for variant in (base.replace(I_OR_L, one), without_splits(base.replace(I_OR_L, one)))
        )
        return tuple(dict.fromkeys(f" {' '.join(words(variant))} " for variant in variants))


def read(text: str) -> Readings:
    """The readings of `text`."""
    raw = tuple(dict.fromkeys(map(fold_with_hidden, _plain_readings(text))))
    folded = (each.replace(HIDDEN, hidden) for each in raw for hidden in ("", " "))
    return Readings(tuple(dict.fromkeys(folded)), tuple(each for each in raw if HIDDEN in each))


def words(text: str) -> list[str]:
    """The words of a folded text."""
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def without_splits(text: str) -> str:
    """`text` without the punctuation inside its words."""
    return _INSIDE.sub("", text.replace("_", "-"))


def squeeze(text: str) -> str:
    """`text` with runs of equal letters cut to one."""
    return _REPEATS.sub(r"\1", text)


def as_letters(text: str) -> Iterable[str]:
    """`text` with digits, then with digits and symbols, replaced by the letters that they look like."""
    if not _DISGUISE.search(text):
        return ()
    letters = text.translate(_DIGIT_LETTERS)
    symbols = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    return (letters,) if symbols == text else (letters, symbols.translate(_DIGIT_LETTERS))
