"""Detects stated ages under eighteen, in digits or in words."""

from __future__ import annotations

import re

from ourvidz.safety.normalise import LETTER

ADULT_YEARS = 18

_UNITS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_YEARS = {word: years for years, word in enumerate(_UNITS, start=1)}
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_LARGER = (*_TENS, "hundred", "thousand")

_GAP = r"[\W_]{0,3}"
_BREAK = r"[\W_]{1,3}"
_DIGITS = r"(?<!\w)(?<!\d[.,])\d{1,3}(?:[.,]\d{1,2})?"
_WORDS = rf"(?<!{LETTER})(?:(?:{'|'.join(_LARGER)})(?:{_BREAK}and)?{_GAP})?(?:{'|'.join(_UNITS)})(?!{LETTER})"
_NUMBER = rf"(?:{_DIGITS}|{_WORDS})"
_NUMBERS = rf"(?P<first>{_NUMBER})(?:{_GAP}(?:to|or|and|[-–—/]){_GAP}(?P<second>{_NUMBER}))?"
_OLD = rf"(?:years?|yrs?|y){_GAP}(?:olds?|o)(?!{LETTER})"

_STATED = (
    re.compile(rf"{_NUMBERS}{_GAP}{_OLD}"),
    re.compile(rf"(?<!{LETTER})age[ds]?(?:{_BREAK}(?:of|is|about|around|only|just))?{_GAP}{_NUMBERS}(?!\w)"),
)
_YOUNGER = re.compile(
    rf"(?:(?<!{LETTER})(?:under|below|younger{_BREAK}than){_GAP}(?:the{_BREAK}age{_BREAK}of{_BREAK})?|<{_GAP})"
    rf"(?:18|eighteen)(?!\d)"
)
_INFANT = re.compile(rf"(?<!{LETTER})(?:months?|weeks?|days?){_BREAK}olds?(?!{LETTER})")


def states_minor_age(text: str) -> bool:
    """Whether a text, folded by `normalise.fold`, states an age under eighteen."""
    if _YOUNGER.search(text) or _INFANT.search(text):
        return True
    return any(
        _is_under_age(number)
        for pattern in _STATED
        for match in pattern.finditer(text)
        for number in match.group("first", "second")
        if number
    )


def _is_under_age(number: str) -> bool:
    """Whether a number, in digits or words, is an age below `ADULT_YEARS`."""
    digits = re.match(r"\d+", number)
    years = int(digits[0]) if digits else _YEARS.get(number, ADULT_YEARS)
    return years < ADULT_YEARS
