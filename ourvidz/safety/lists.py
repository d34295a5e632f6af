"""The term lists: data files of this package, and those that other packages contribute."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from ourvidz.errors import SettingsError
from ourvidz.safety.normalise import LETTER, Readings, fold

GROUP = "ourvidz.safety_terms"
"""Entry points of this group name a package, or a directory, of `minor*.txt` and `sexual*.txt` files."""

_KIND = re.compile(r"(minor|sexual)[^/]*\.txt")
_RUNS = re.compile(r"(.)\1*", re.DOTALL)


@dataclass(frozen=True)
class Terms:
    """Words of two kinds; only both together mean anything. Matched in any case, spelling trick or plural."""

    minor: frozenset[str]
    sexual: frozenset[str]

    def __post_init__(self) -> None:
        for kind in ("minor", "sexual"):
            object.__setattr__(self, kind, frozenset(getattr(self, kind)))
            if not getattr(self, kind):
                raise SettingsError(f"The safety gate has no {kind} terms.", field=kind)


class Matcher:
    """Finds any of some terms in the readings of a text."""

    def __init__(self, terms: Iterable[str]) -> None:
        either = "|".join(sorted({_pattern(term) for term in terms}))
        self._anywhere = re.compile(either)
        self._at_boundaries = re.compile(rf"(?<!{LETTER})(?:{either})(?:e?s+)?(?!{LETTER})")

    def found_in(self, readings: Readings) -> bool:
        """Whether one of the terms stands in one of the readings."""
        return any(map(self._at_boundaries.search, readings.words)) or any(
            map(self._anywhere.search, readings.spelled)
        )


def _pattern(term: str) -> str:
    """Letters may be drawn out to three and more, words be joined or split, a last y become ie(s)."""
    words = [word for word in re.split(r"[\W\d_]+", fold(term)) if word]
    if len("".join(words)) < 2:
        raise SettingsError("A safety term needs two letters or more.", field="terms")
    parts = ["".join(_drawn_out(run[0]) for run in _RUNS.finditer(word)) for word in words]
    if words[-1].endswith("y"):
        parts[-1] = parts[-1].removesuffix(_drawn_out("y")) + f"(?:{_drawn_out('y')}|ie)"
    return r"[\W\d_]{0,3}".join(parts)


def _drawn_out(run: str) -> str:
    letter = re.escape(run[0])
    return f"{letter}(?:{letter}{{2,}})?" if len(run) == 1 else f"{letter}{{{min(len(run), 3)},}}"


def load_terms() -> Terms:
    """The shipped terms and every contribution. One that cannot be read stops the process: a gate with
    half its terms would look like a whole one. Raises `SettingsError`."""
    found: dict[str, set[str]] = {"minor": set(), "sexual": set()}
    places = [files("ourvidz.safety") / "terms", *map(_contributed, entry_points(group=GROUP))]
    for place in places:
        for kind, term in _read(place):
            found[kind].add(term)
    return Terms(frozenset(found["minor"]), frozenset(found["sexual"]))


def _contributed(point: EntryPoint) -> Traversable:
    try:
        target = point.load()
        return (
            target
            if isinstance(target, Traversable)
            else Path(target)
            if isinstance(target, str)
            else files(target)
        )
    except Exception as error:
        raise SettingsError(f"{GROUP}: {point.name} cannot be loaded ({error}).", field=GROUP) from error


def _read(place: Traversable) -> Iterator[tuple[str, str]]:
    lists = sorted(
        (item for item in place.iterdir() if item.name.endswith(".txt")), key=lambda item: item.name
    )
    if not lists:
        raise SettingsError(f"{GROUP}: {place} holds no term lists.", field=GROUP)
    for item in lists:
        kind = _KIND.fullmatch(item.name)
        if kind is None:
            raise SettingsError(f"{GROUP}: {item.name} must be named minor*.txt or sexual*.txt.", field=GROUP)
        for line in item.read_text(encoding="utf-8").splitlines():
            term = line.partition("#")[0].strip()
            if term:
                yield kind[1], term
