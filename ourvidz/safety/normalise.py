"""Normalises text before terms are matched: undoes the usual disguises of words.

A text has several variants because a disguise is ambiguous: a `1` may be an i or an l, a full stop may end a
word or split it. What encoders remove from a prompt, HTML entities and the syntax of weights, is a disguise
too.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from ourvidz.prompts import weights

LETTER = r"[^\W\d_\u0e00-\U0010ffff]"
"""A letter of the alphabets that put spaces between words; the scripts above U+0E00 do not."""
NO_LETTER = r"[\W\d_\u0e00-\U0010ffff]"

_INVISIBLE = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_MARKS = frozenset({"Mn", "Me"})
_WITHOUT_WIDTH = frozenset({"Cf", "Cc", "Cs", "Co"})

_HOMOGLYPHS = {
    "a": "аαɑᴀ", "b": "вβьʙ", "c": "сϲᴄ", "d": "ԁɗđᴅ", "e": "еєεᴇɛə", "f": "ғƒꜰ", "g": "ɡɢց", "h": "нһʜђħ",
    "i": "іιıɪӏ", "j": "јʝᴊ", "k": "кκᴋ", "l": "ʟłⅼ", "m": "мᴍ", "n": "пηɴո", "o": "оοσøᴏօ", "p": "рρᴘ",
    "q": "ԛ", "r": "гʀ", "s": "ѕꜱʂ", "t": "тτᴛŧ", "u": "υսᴜ", "v": "ѵνᴠ", "w": "ԝωᴡш", "x": "хχ", "y": "уγʏү",
    "z": "ᴢʐ",
}  # fmt: skip
_FOLDED = {ord(other): letter for letter, others in _HOMOGLYPHS.items() for other in others}
# Boxed and circled capitals that NFKD keeps, and the letters flags are made of.
_FOLDED |= {
    start + place: chr(ord("a") + place) for start in (0x1F150, 0x1F170, 0x1F1E6) for place in range(26)
}

_DIGITS = {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g"}
_DIGITS_WITH = {one: {ord(digit): letter for digit, letter in (_DIGITS | {"1": one}).items()} for one in "il"}
_SYMBOLS = {"@": "a", "$": "s", "€": "e", "£": "l", "¢": "c", "+": "t"}
_AMBIGUOUS_SYMBOLS = "1!|"
_SYMBOL = re.compile(r"(?<=\w)[!|+€£¢](?=\w)|[@$](?=\w)|(?<=\w)[@$]")
_DISGUISE = re.compile(r"[0-9@$€£¢+!|]")
_CHUNK = re.compile(r"\S+")
_INSIDE = re.compile(r"(?<=[^\W_])(?:[^\w\s]|_)+(?=[^\W_])")
_SPELLED = re.compile(rf"(?<!{LETTER}){LETTER}(?:{NO_LETTER}{{1,4}}{LETTER}(?!{LETTER})){{2,}}")
_ANY_LETTER = re.compile(LETTER)
_LONG_RUN = re.compile(r"([^\W\d_])\1{3,}")
_NO_LETTERS = re.compile(NO_LETTER + "+")


@dataclass(frozen=True, slots=True)
class TextVariants:
    """The normalised variants of a text.

    `words` are searched at word boundaries; `spelled`, joined from letters that stood alone, anywhere.
    """

    words: frozenset[str]
    spelled: frozenset[str]


def fold(text: str, *, hidden: str = "") -> str:
    """`text` in lower-case base letters without accents; invisible characters are replaced by `hidden`."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(_visible(decomposed, hidden)).translate(_FOLDED)


def _visible(text: str, hidden: str) -> Iterator[str]:
    """Yield the characters without marks; white space as a space, and invisible ones as `hidden`."""
    for char in text:
        category = unicodedata.category(char)
        if char.isspace():
            yield " "
        elif category in _WITHOUT_WIDTH or char in _INVISIBLE:
            yield hidden
        elif category not in _MARKS:
            yield char


def text_variants(text: str) -> TextVariants:
    """All variants of `text`, and of what text encoders read in place of it."""
    readings = {text, _unescape(text)}
    readings |= set(map(weights.clean, readings))
    folded = {fold(reading, hidden=hidden) for reading in readings for hidden in ("", " ")}
    undisguised = {variant for base in folded for variant in _undisguised(base)}
    words = folded | undisguised
    spelled = {
        _NO_LETTERS.sub("", run)
        for base in folded | {_digits_as_letters(base, one) for base in folded for one in "il"}
        for run in _SPELLED.findall(base)
    }
    words |= {_INSIDE.sub("", variant) for variant in words}
    return TextVariants(frozenset(map(_shorten_runs, words)), frozenset(map(_shorten_runs, spelled)))


def _unescape(text: str) -> str:
    """Replace HTML entities, twice, as the encoder of Wan does: `q&#117;ux` is a word there."""
    return html.unescape(html.unescape(text))


def _shorten_runs(text: str) -> str:
    """Cut runs of one letter to three: longer ones would make matching take quadratic time."""
    return _LONG_RUN.sub(r"\1\1\1", text)


def _undisguised(text: str) -> Iterator[str]:
    """Yield `text` with digits, then with digits and symbols, replaced by the letters they resemble."""
    if not _DISGUISE.search(text):
        return
    for one in "il":
        yield _digits_in_words_as_letters(text, one)
        yield _digits_in_words_as_letters(_symbols_as_letters(text, one), one)


def _symbols_as_letters(text: str, one: str) -> str:
    """Replace symbols by the letters that they look like; ambiguous ones by `one`."""
    letters = _SYMBOLS | dict.fromkeys(_AMBIGUOUS_SYMBOLS, one)
    return _SYMBOL.sub(lambda match: letters[match[0]], text)


def _digits_in_words_as_letters(text: str, one: str) -> str:
    """Replace digits by letters in words that also have letters; a number alone stays a number."""
    return _CHUNK.sub(
        lambda match: _digits_as_letters(match[0], one) if _ANY_LETTER.search(match[0]) else match[0], text
    )


def _digits_as_letters(text: str, one: str) -> str:
    """Replace digits by the letters that they look like; a 1 by `one`."""
    return text.translate(_DIGITS_WITH[one])
