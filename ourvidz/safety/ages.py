"""Detects stated ages under eighteen, in digits or in words. The ways to state one are data files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from ourvidz.safety.normalise import FIRST_UNSPACED, fold

ADULT_YEARS = 18
GLUED = "="
"""Marks a phrase that counts only where it touches its number."""
LONGEST_PHRASE = 5
"""Most words of a pattern on one side of its number."""
LONGEST_NUMBER = 4
"""Most words before the last one of a number that are looked at."""

_PATTERN = re.compile(r"(?P<before>.*?)(?P<kind>\{\w+\})(?P<after>.*)")
_DIGIT = re.compile(r"\d")
_DECIMALS = re.compile(r"(\d)[.,]\d{1,2}(?![\d.,])")
_THOUSANDS = re.compile(r"(\d)[.,](?=\d{3})")
_RANGE = re.compile(r"(\d) ?[-‐‑–—~/] ?(?=\d)")
_SLASH = re.compile(r"/(?=[fm]\b)")
_HYPHEN = "\x01"
"""Stands for a hyphen or slash that belongs to a pattern. No folded text has it."""
_GLUED = re.compile(r"(?P<before>[^\d]*)(?P<digits>\d{1,3})(?P<after>[^\d]*)", re.DOTALL)
_ORDINAL_ENDS = ("st", "nd", "rd", "th", "º", "ª", "°")


_NUMERALS = "〇零一二三四五六七八九十百千两兩廿"


@dataclass(slots=True)
class _Language:
    """The number words and patterns of one language. `before` and `after` are what stands beside a number,
    without spaces, with the kinds of number; `around` both, by what stands before. The parts of phrases tell
    where a search may end."""

    values: dict[str, int] = field(default_factory=dict)
    before: dict[str, set[str]] = field(default_factory=dict)
    after: dict[str, set[str]] = field(default_factory=dict)
    around: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    endings: set[str] = field(default_factory=set)
    beginnings: set[str] = field(default_factory=set)

    def add(self, before: str, kind: str, after: str) -> None:
        """Add a pattern: a number of this kind between two phrases, one of which may be empty."""
        if before and after:
            self.around.setdefault(before, []).append((kind, after))
        elif before:
            self.before.setdefault(before, set()).add(kind)
        else:
            self.after.setdefault(after, set()).add(kind)
        self.endings.update(before[at:] for at in range(len(before)))
        self.beginnings.update(after[:at] for at in range(1, len(after) + 1))


@dataclass(frozen=True, slots=True)
class _Forms:
    """The patterns of all languages. `phrases` are complete without a number; `unspaced` are the patterns of
    the languages that put no spaces between words, by the text that must be there."""

    languages: dict[str, _Language]
    values: dict[str, tuple[tuple[str, int], ...]]
    tens: frozenset[str]
    joins: frozenset[str]
    ranges: frozenset[str]
    phrases: tuple[str, ...]
    unspaced: tuple[tuple[str, str, str, re.Pattern[str]], ...]
    every: _Language


@dataclass(frozen=True, slots=True)
class _Number:
    """A number in a text, its place, and the letters that touch it."""

    at: int
    years: int
    language: str | None
    before: str = ""
    after: str = ""


def states_minor_age(text: str) -> bool:
    """Whether a text, folded by `normalise.fold`, states an age under eighteen."""
    forms = _forms()
    plain = f" {_plain(text)} "
    if any(phrase in plain for phrase in forms.phrases) or _states_unspaced(text, forms):
        return True
    tokens = plain.split()
    return any(_is_age(number, tokens, forms) for number in _numbers(tokens, forms))


def number_words() -> frozenset[str]:
    """All number words, folded."""
    return frozenset(_forms().values)


def _plain(text: str) -> str:
    """Single spaces for all punctuation that tells nothing about an age; numbers without decimals."""
    if _DIGIT.search(text):
        text = _THOUSANDS.sub(r"\1", _DECIMALS.sub(r"\1", text))
        text = _RANGE.sub(r"\1 to ", text).replace("<", " < ")
    text = text.replace("-year", f" {_HYPHEN}year")
    if "/" in text:
        text = _SLASH.sub(_HYPHEN, text)
    return " ".join(text.translate(_PLAIN).split())


class _PlainTable(dict[int, str]):
    """Letters, digits and the marks that patterns have, by code point; a space for everything else."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        kept = self[code] = char if char.isalnum() or char in f"<{_HYPHEN}" else " "
        return kept


_PLAIN = _PlainTable()


def _numbers(tokens: Sequence[str], forms: _Forms) -> Iterator[_Number]:
    """Yield the numbers up to eighteen that are not the end of a larger one."""
    for at, token in enumerate(tokens):
        if token in forms.values:
            years = _compound(at, tokens, forms)
            if years is not None:
                yield from (
                    _Number(at, years + value, language)
                    for language, value in forms.values[token]
                    if years + value <= ADULT_YEARS
                )
        elif not token.isalpha() and (glued := _GLUED.fullmatch(token)) is not None:
            years = int(glued["digits"])
            if years <= ADULT_YEARS:
                after = "" if glued["after"] in _ORDINAL_ENDS else glued["after"]
                yield _Number(at, years, None, glued["before"], after)


def _compound(at: int, tokens: Sequence[str], forms: _Forms) -> int | None:
    """What the words before add to a number word: ten, nothing, or None for tens that make it larger."""
    ten = 0
    for word in reversed(tokens[max(0, at - LONGEST_NUMBER) : at]):
        if word in forms.tens:
            return None
        if word not in forms.values and word not in forms.joins:
            break
        if any(value == 10 for _, value in forms.values.get(word, ())):
            ten = 10
    return ten if all(value < 10 for _, value in forms.values[tokens[at]]) else 0


def _is_age(number: _Number, tokens: Sequence[str], forms: _Forms) -> bool:
    """Whether a number is the age of a minor in one of the patterns."""
    language = forms.every if number.language is None else forms.languages[number.language]
    kinds = {"{18}" if number.years == ADULT_YEARS else "{n}"}
    if number.language is None and 10 <= number.years < ADULT_YEARS:
        kinds.add("{teen}")
    if not number.before and any(
        not kinds.isdisjoint(language.after.get(phrase, ()))
        for phrase in _after(number.at, number.after, tokens, language, forms)
    ):
        return True
    for phrase in _before(number.at, number.before, tokens, language):
        if not number.after and not kinds.isdisjoint(language.before.get(phrase, ())):
            return True
        for kind, after in language.around.get(phrase, ()):
            if (kind in kinds or kind == "{18}") and after in _after(
                number.at, number.after, tokens, language, forms
            ):
                return True
    return False


def _after(
    at: int, touching: str, tokens: Sequence[str], language: _Language, forms: _Forms, *, ranged: bool = True
) -> Iterator[str]:
    """Yield what follows a number, as far as it may be the beginning of a pattern; also what follows the
    second number of a range."""
    if touching:
        yield from (touching, GLUED + touching)
    phrase = touching
    for token in tokens[at + 1 : at + 1 + LONGEST_PHRASE]:
        phrase += token
        if phrase not in language.beginnings:
            break
        yield phrase
    if ranged and not touching and at + 2 < len(tokens) and tokens[at + 1] in forms.ranges:
        second = tokens[at + 2]
        glued = _GLUED.fullmatch(second)
        if glued is not None or second in forms.values:
            rest = "" if glued is None else glued["after"]
            yield from _after(at + 2, rest, tokens, language, forms, ranged=False)


def _before(at: int, touching: str, tokens: Sequence[str], language: _Language) -> Iterator[str]:
    """Yield what stands before a number, as far as it may be the end of a pattern."""
    if touching:
        yield from (touching, GLUED + touching)
        return
    phrase = ""
    for token in reversed(tokens[max(0, at - LONGEST_PHRASE) : at]):
        phrase = token + phrase
        if phrase not in language.endings:
            return
        yield phrase


def _states_unspaced(text: str, forms: _Forms) -> bool:
    """Whether a text in a script without spaces states the age of a minor."""
    if text.isascii():
        return False
    joined, compact = " ".join(text.split()), "".join(text.split())
    for language, kind, literal, pattern in forms.unspaced:
        if literal not in compact:
            continue
        values = forms.languages[language].values
        limit = ADULT_YEARS if kind == "{18}" else ADULT_YEARS - 1
        for match in pattern.finditer(joined):
            number = match["number"]
            years = int(number) if number.isdecimal() else values.get(number, ADULT_YEARS + 1)
            if years <= limit:
                return True
    return False


@cache
def _forms() -> _Forms:
    """The patterns of the data files, read once."""
    languages: dict[str, _Language] = {}
    words: dict[str, dict[str, list[str]]] = {}
    for language, kind, row in _rows("numbers.txt", columns=3):
        words.setdefault(language, {})[kind] = [_compact(word) for word in row.split()]
        if kind in ("units", "ordinals"):
            own = languages.setdefault(language, _Language())
            own.values |= {_compact(word): value for value, word in enumerate(row.split(), start=1)}
    phrases: list[str] = []
    unspaced = []
    every = _Language()
    for language, row in _rows("ages.txt", columns=2):
        own = languages.setdefault(language, _Language())
        found = _PATTERN.fullmatch(row)
        if found is None:
            phrases.append(f" {_plain(fold(row))} ")
            continue
        kind, before, after = found["kind"], _beside(found["before"], -1), _beside(found["after"], 0)
        if max(before + after) >= FIRST_UNSPACED:
            tens = "|".join(words.get(language, {}).get("tens", ()))
            unspaced.append(
                (
                    language,
                    kind,
                    max(before, after, key=len),
                    _unspaced(fold(found["before"]), fold(found["after"]), own, tens),
                )
            )
        else:
            own.add(before, kind, after)
            every.add(before, kind, after)
    values: dict[str, list[tuple[str, int]]] = {}
    for name, own in languages.items():
        for word, value in own.values.items():
            values.setdefault(word, []).append((name, value))

    def collect(kind: str) -> frozenset[str]:
        return frozenset(word for own in words.values() for word in own.get(kind, ()))

    return _Forms(
        languages,
        {word: tuple(found) for word, found in values.items()},
        collect("tens"),
        collect("and"),
        collect("range"),
        tuple(phrases),
        tuple(unspaced),
        every,
    )


def _unspaced(before: str, after: str, language: _Language, tens: str) -> re.Pattern[str]:
    """The pattern of an age in a script without spaces: a number between its two literals."""
    words = "|".join(sorted(language.values, key=len, reverse=True)) or "(?!)"
    if all(word[0] in _NUMERALS for word in language.values):
        words = f"(?<![{_NUMERALS}])[{_NUMERALS}]+"
    larger = f"(?:(?:{tens}) ?)?" if tens else ""
    number = rf"(?P<number>(?<![\d.,])\d{{1,3}}(?!\d)|{larger}(?:{words}))"
    return re.compile(" ?".join([*map(re.escape, before.split()), number, *map(re.escape, after.split())]))


def _compact(phrase: str) -> str:
    """A phrase as it stands in a plain text, without its spaces."""
    return "".join(_plain(fold(phrase)).split())


def _beside(phrase: str, edge: int) -> str:
    """A phrase without its spaces, marked if the letter at its edge must touch the number."""
    compact = _compact(phrase)
    is_glued = phrase[edge:][:1].isalpha() and max(compact) < FIRST_UNSPACED
    return GLUED + compact if is_glued else compact


def _rows(name: str, *, columns: int) -> Iterator[list[str]]:
    """Yield the cells of a data file's rows."""
    text = (files("ourvidz.safety") / "patterns" / name).read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield [cell.strip() for cell in line.split("|", columns - 1)]
