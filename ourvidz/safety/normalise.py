"""Folds a text to lower-case base letters: undoes accents, look-alikes, styled and invisible characters.

Each character is folded by itself, by a table: the time is linear in the length, no character becomes more
than `MAX_EXPANSION` others, and marks are removed before anything could sort them.
"""

from __future__ import annotations

import re
import unicodedata
from importlib.resources import files

LETTER = r"[^\W\d_\u0e00-\U0010ffff]"
"""A letter of the alphabets that put spaces between words; the scripts above U+0E00 do not."""
NO_LETTER = r"[\W\d_\u0e00-\U0010ffff]"
FIRST_UNSPACED = "\u0e00"
"""The first character of the scripts that put no spaces between words."""

MAX_EXPANSION = 6
"""Longest fold of one character. A character that stands for a longer phrase is read as a space."""
CACHED_BELOW = 0x20000
"""Code points below are folded once for each process; above are ideographs, tags and private characters."""

HIDDEN = "\0"
"""Stands for an invisible character, which may or may not part two words."""
_INVISIBLE = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_MARKS = frozenset({"Mn", "Me"})
_WITHOUT_WIDTH = frozenset({"Cf", "Cc", "Cs", "Co"})
_JAMO = re.compile("[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?")
_PRIVATE = range(0xE000, 0xF900)
_SURROGATES = range(0xD800, 0xE000)
_SYLLABLES = range(0xAC00, 0xD7A4)
_IDEOGRAPHS = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000))
_SUPPLEMENTARY_IDEOGRAPHS = range(0x20000, 0x2F800)


def _read_homoglyphs() -> dict[int, str]:
    """The Latin letter of each look-alike, by code point; capitals are folded before."""
    text = (files("ourvidz.safety") / "patterns" / "homoglyphs.txt").read_text(encoding="utf-8")
    rows = (line.split() for line in text.splitlines() if not line.startswith("#"))
    table = {ord(double): letter for letter, doubles in rows for double in doubles.casefold() + doubles}
    # Boxed and circled capitals that NFKD keeps, and the letters flags are made of.
    return table | {
        start + place: chr(ord("a") + place) for start in (0x1F150, 0x1F170, 0x1F1E6) for place in range(26)
    }


class _FoldTable(dict[int, str]):
    """The fold of each character, by code point, computed when it is first met."""

    def __init__(self) -> None:
        super().__init__()
        self._homoglyphs = _read_homoglyphs()

    def __missing__(self, code: int) -> str:
        fold = self._fold(code)
        if code < CACHED_BELOW:
            self[code] = fold
        return fold

    def _fold(self, code: int) -> str:
        if code in _SYLLABLES or any(code in block for block in _IDEOGRAPHS):
            return chr(code)
        if code in _SURROGATES or code in _PRIVATE or code >= 0xF0000:
            return HIDDEN
        if code in _SUPPLEMENTARY_IDEOGRAPHS:
            return chr(code)
        char = chr(code)
        if char.isspace():
            return " "
        decimal = unicodedata.decimal(char, None)
        if decimal is not None:
            return str(decimal)
        decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
        folded = "".join(map(_visible, decomposed)).translate(self._homoglyphs)
        return folded if len(folded) <= MAX_EXPANSION else " "


def _visible(char: str) -> str:
    """Nothing for a mark, the hidden character for one without width, a space for white space."""
    category = unicodedata.category(char)
    if char.isspace():
        return " "
    if category in _WITHOUT_WIDTH or char in _INVISIBLE:
        return HIDDEN
    return "" if category in _MARKS else char


_TABLE = _FoldTable()


def fold(text: str, *, hidden: str = "") -> str:
    """`text` in lower-case base letters without accents; invisible characters are replaced by `hidden`."""
    return fold_with_hidden(text).replace(HIDDEN, hidden)


def fold_with_hidden(text: str) -> str:
    """The fold of `text` with `HIDDEN` in place of its invisible characters."""
    folded = text.translate(_TABLE)
    if not folded.isascii() and _JAMO.search(folded):
        folded = _JAMO.sub(lambda match: unicodedata.normalize("NFC", match[0]), folded)
    return folded
