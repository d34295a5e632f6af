"""Term lists: the data files of this package, and those of packages that register an entry point."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from ourvidz.errors import SettingsError

GROUP = "ourvidz.safety_terms"
"""Entry points of this group refer to a package or a directory with `minor*.txt` and `sexual*.txt` files."""

_KIND = re.compile(r"(minor|sexual)[^/]*\.txt")


@dataclass(frozen=True)
class Terms:
    """The terms of both kinds. Only a term of each kind together is a violation.

    Matching ignores case, common disguises and plurals. Raises `SettingsError` if a kind has no terms.
    """

    minor: frozenset[str]
    sexual: frozenset[str]

    def __post_init__(self) -> None:
        for kind in ("minor", "sexual"):
            object.__setattr__(self, kind, frozenset(getattr(self, kind)))
            if not getattr(self, kind):
                raise SettingsError(f"The safety gate has no {kind} terms.", field=kind)


def load_terms() -> Terms:
    """Load the terms of this package and of every entry point. Raises `SettingsError` if one cannot be read:
    a gate without some of its terms would look like a complete one."""
    terms: dict[str, set[str]] = {"minor": set(), "sexual": set()}
    contributed = map(_resolve_entry_point, entry_points(group=GROUP))
    for folder in (files("ourvidz.safety") / "terms", *contributed):
        for kind, term in _read_folder(folder):
            terms[kind].add(term)
    return Terms(frozenset(terms["minor"]), frozenset(terms["sexual"]))


def _resolve_entry_point(point: EntryPoint) -> Traversable:
    """The folder that an entry point names: a path, a text or a module. Raises `SettingsError`."""
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


def _read_folder(folder: Traversable) -> Iterator[tuple[str, str]]:
    text_files = sorted(
        (item for item in folder.iterdir() if item.name.endswith(".txt")), key=lambda item: item.name
    )
    if not text_files:
        raise SettingsError(f"{GROUP}: {folder} holds no term lists.", field=GROUP)
    for item in text_files:
        kind = _KIND.fullmatch(item.name)
        if kind is None:
            raise SettingsError(
                f"{GROUP}: {item.name} must be named minor*.txt or sexual*.txt.",
                field=GROUP,
            )
        for line in item.read_text(encoding="utf-8").splitlines():
            term = line.partition("#")[0].strip()
            if term:
                yield kind[1], term
