"""The ways one text may be read once the usual disguises are taken off.

A text has several readings because a disguise is ambiguous: a `1` may be an i or an l, a full stop may
end a word or split one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

LETTER = r"[^\W\d_\u0e00-\U0010ffff]"
"""A letter of the alphabets that put spaces between words; the scripts above U+0E00 do not."""
NO_LETTER = r"[\W\d_\u0e00-\U0010ffff]"

_INVISIBLE = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_MARKS = frozenset({"Mn", "Me"})
_WITHOUT_WIDTH = frozenset({"Cf", "Cc", "Cs", "Co"})

_LOOK_ALIKES = {
    "a": "аαɑᴀ", "b": "вβьʙ", "c": "сϲᴄ", "d": "ԁɗđᴅ", "e": "еєεᴇɛə", "f": "ғƒꜰ", "g": "ɡɢց", "h": "нһʜђħ",
    "i": "іιıɪӏ", "j": "јʝᴊ", "k": "кκᴋ", "l": "ʟłⅼ", "m": "мᴍ", "n": "пηɴո", "o": "оοσøᴏօ", "p": "рρᴘ",
    "q": "ԛ", "r": "гʀ", "s": "ѕꜱʂ", "t": "тτᴛŧ", "u": "υսᴜ", "v": "ѵνᴠ", "w": "ԝωᴡш", "x": "хχ", "y": "уγʏү",
    "z": "ᴢʐ",
}  # fmt: skip
_FOLDED = {ord(other): letter for letter, others in _LOOK_ALIKES.items() for other in others}
# Boxed and circled capitals that NFKD keeps, and the letters flags are made of.
_FOLDED |= {
    start + place: chr(ord("a") + place) for start in (0x1F150, 0x1F170, 0x1F1E6) for place in range(26)
}

_DIGITS = {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g"}
_DIGITS_WITH = {one: {ord(digit): letter for digit, letter in (_DIGITS | {"1": one}).items()} for one in "il"}
_SYMBOLS = {"@": "a", "$": "s", "€": "e", "£": "l", "¢": "c", "+": "t"}
_AMBIGUOUS = "1!|"
_SYMBOL = re.compile(r"(?<=\w)[!|+€£¢](?=\w)|[@$](?=\w)|(?<=\w)[@$]")
_DISGUISE = re.compile(r"[0-9@$€£¢+!|]")
_CHUNK = re.compile(r"\S+")
_INSIDE = re.compile(r"(?<=[^\W_])(?:[^\w\s]|_)+(?=[^\W_])")
_SPELLED = re.compile(rf"(?<!{LETTER}){LETTER}(?:{NO_LETTER}{{1,4}}{LETTER}(?!{LETTER})){{2,}}")
_ANY_LETTER = re.compile(LETTER)
_LONG_RUN = re.compile(r"([^\W\d_])\1{3,}")
_NO_LETTERS = re.compile(NO_LETTER + "+")


@dataclass(frozen=True, slots=True)
class Readings:
    """`words` are to be searched at word boundaries, `spelled` (letters that stood alone) anywhere."""

    words: frozenset[str]
    spelled: frozenset[str]


def fold(text: str, *, hidden: str = "") -> str:
    """`text` in lower-case base letters; characters without width become `hidden`."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(_visible(decomposed, hidden)).translate(_FOLDED)


def _visible(text: str, hidden: str) -> Iterator[str]:
    for char in text:
        category = unicodedata.category(char)
        if char.isspace():
            yield " "
        elif category in _WITHOUT_WIDTH or char in _INVISIBLE:
            yield hidden
        elif category not in _MARKS:
            yield char


def read(text: str) -> Readings:
    """Every reading of `text`."""
    folded = {fold(text), fold(text, hidden=" ")}
    undisguised = {reading for base in folded for reading in _undisguised(base)}
    words = folded | undisguised
    spelled = {
        _NO_LETTERS.sub("", run)
        for base in folded | {_digits_as_letters(base, one) for base in folded for one in "il"}
        for run in _SPELLED.findall(base)
    }
    words |= {_INSIDE.sub("", reading) for reading in words}
    return Readings(frozenset(map(_bounded, words)), frozenset(map(_bounded, spelled)))


def _bounded(text: str) -> str:
    """A letter drawn out for longer says no more, and would cost a search quadratic time."""
    return _LONG_RUN.sub(r"\1\1\1", text)


def _undisguised(text: str) -> Iterator[str]:
    """`text` with digits, then digits and symbols, read as the letters they look like."""
    if not _DISGUISE.search(text):
        return
    for one in "il":
        yield _figures_as_letters(text, one)
        yield _figures_as_letters(_symbols_as_letters(text, one), one)


def _symbols_as_letters(text: str, one: str) -> str:
    meant = _SYMBOLS | dict.fromkeys(_AMBIGUOUS, one)
    return _SYMBOL.sub(lambda found: meant[found[0]], text)


def _figures_as_letters(text: str, one: str) -> str:
    """Digits as letters where they stand with letters: a number alone stays a number."""
    return _CHUNK.sub(
        lambda found: _digits_as_letters(found[0], one) if _ANY_LETTER.search(found[0]) else found[0], text
    )


def _digits_as_letters(text: str, one: str) -> str:
    return text.translate(_DIGITS_WITH[one])
