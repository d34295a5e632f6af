"""Typed reading of a payload by the caller's own paths.

Every reader takes the paths of one value in order; the first that is present wins, valid or not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from ourvidz.errors import CallerError, InvalidParameters, InvalidPrompt
from ourvidz.jobs.ranges import PROMPT_CHARS, Range
from ourvidz.jobs.sanitize import is_well_formed, plain, shorten

CONTAINERS = ("config", "metadata")
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
IDENTIFIER_RULE = "1 to 128 characters of A-Z a-z 0-9 . _ : - that start with a letter or a digit"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMBER_CHARS = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A value and where the caller wrote it."""

    path: str
    value: Any


def either(value: T | None, default: T) -> T:
    """`value` where there is one; 0 and False are values."""
    return default if value is None else value


def refused(
    path: str, rule: str, value: object, *, error: type[CallerError] = InvalidParameters
) -> CallerError:
    """The error for a value outside its rule, to be raised."""
    shown = shorten(value)
    said = repr(shown) if isinstance(value, str) else str(shown)
    return error(f"{path} must be {rule}, not {said}.", field=path, rule=rule, value=shown)


def refused_text(
    path: str, rule: str, value: object, *, error: type[CallerError] = InvalidParameters
) -> CallerError:
    """Like `refused`, for what people write: it is never repeated in an error, errors are logged."""
    if not isinstance(value, str):
        return refused(path, rule, value, error=error)
    shown = f"a text of {len(value):,} characters"
    return error(f"{path} must be {rule}; this is {shown}.", field=path, rule=rule, value=shown)


def missing(path: str, rule: str, *, error: type[CallerError] = InvalidParameters) -> CallerError:
    """The error for a value that is not there, to be raised."""
    return error(f"{path} is missing: {rule}.", field=path, rule=rule)


def checked_text(
    path: str, value: object, *, limit: int, error: type[CallerError] = InvalidParameters
) -> str:
    """`value` as text of at most `limit` characters that can be stored."""
    rule = f"text of at most {limit:,} characters"
    if not isinstance(value, str) or len(value) > limit:
        raise refused_text(path, rule, value, error=error)
    if not is_well_formed(value):
        rule = "text without NUL characters and unpaired surrogates"
        raise refused_text(path, rule, value, error=error)
    return value


class Fields:
    """One payload. What no reader asked for is left in `unread`."""

    def __init__(self, payload: object) -> None:
        if not isinstance(payload, dict):
            rule = "a JSON object"
            said = shorten(payload) if isinstance(payload, (list, tuple)) else type(payload).__name__
            raise InvalidParameters(f"The payload must be {rule}, not {said}.", rule=rule, value=said)
        self._levels: dict[str, dict[Any, Any]] = {"": payload}
        for name in CONTAINERS:
            value = payload.get(name)
            if value is None or value == "":
                value = {}
            if not isinstance(value, dict):
                raise refused(name, "an object", value)
            self._levels[name] = value
        self._asked: set[str] = set()

    def first(self, *paths: str) -> Found | None:
        """The first of `paths` that is present; null and "" count as absent."""
        self._asked.update(paths)
        for path in paths:
            level, _, name = path.rpartition(".")
            value = self._levels[level].get(name)
            if value is not None and not (isinstance(value, str) and value == ""):
                return Found(path, value)
        return None

    def text(self, *paths: str, limit: int = PROMPT_CHARS) -> str | None:
        """Free text of at most `limit` characters."""
        found = self.first(*paths)
        return None if found is None else checked_text(found.path, found.value, limit=limit)

    def prompt(self) -> str:
        """The prompt as written; "" when there is none or nothing but white space."""
        found = self.first("prompt")
        if found is None:
            return ""
        text = checked_text(found.path, found.value, limit=PROMPT_CHARS, error=InvalidPrompt)
        return text if text.strip() else ""

    def number(self, *paths: str, within: Range) -> float | None:
        """A finite number, or the same as a string; booleans are none."""
        found = self.first(*paths)
        if found is None:
            return None
        value = number(found.value)
        if value is None or value not in within:
            raise refused(found.path, within.rule, found.value)
        return value

    def integer(self, *paths: str, within: Range) -> int | None:
        """A whole number: 25, 25.0, "25"."""
        value = self.number(*paths, within=within)
        return None if value is None else int(value)

    def one_of(self, *paths: str, numbers: tuple[int, ...]) -> int | None:
        """One of a few numbers."""
        found = self.first(*paths)
        if found is None:
            return None
        value = number(found.value)
        if value is None or value not in numbers:
            raise refused(found.path, _listed([str(number) for number in numbers]), found.value)
        return int(value)

    def boolean(self, *paths: str) -> bool | None:
        """A JSON boolean, or the strings "true" and "false"."""
        found = self.first(*paths)
        if found is None:
            return None
        if isinstance(found.value, bool):
            return found.value
        if isinstance(found.value, str) and found.value.lower() in ("true", "false"):
            return found.value.lower() == "true"
        raise refused(found.path, "true or false", found.value)

    def choice(self, *paths: str, among: Collection[str]) -> str | None:
        """One of a few words."""
        found = self.first(*paths)
        if found is None:
            return None
        if isinstance(found.value, str) and found.value in among:
            return found.value
        raise refused(found.path, _listed(list(among)), found.value)

    def identifier(self, *paths: str) -> str | None:
        """An id: it becomes part of keys and paths, so its alphabet is small."""
        found = self.first(*paths)
        if found is None:
            return None
        if isinstance(found.value, str) and IDENTIFIER.fullmatch(found.value):
            return found.value
        raise refused(found.path, IDENTIFIER_RULE, found.value)

    def hint(self, read: Callable[..., T | None], *paths: str) -> T | None:
        """What `read` makes of a field that has no rule: a value it refuses counts as absent, and stays
        unread."""
        try:
            return read(*paths)
        except CallerError:
            self._asked.difference_update(paths)
            return None

    def echo(self, *paths: str) -> Any:
        """Whatever the caller wrote, made safe to store; None when absent."""
        found = self.first(*paths)
        return None if found is None else plain(found.value)

    def unread(self) -> dict[str, Any]:
        """The fields nobody asked for, in the caller's own shape."""
        rest: dict[Any, Any] = {}
        for level, content in self._levels.items():
            prefix = f"{level}." if level else ""
            left = {
                key: value
                for key, value in content.items()
                if f"{prefix}{key}" not in self._asked and (level or key not in CONTAINERS)
            }
            if level and left:
                rest[level] = left
            elif not level:
                rest.update(left)
        safe: dict[str, Any] = plain(rest)
        return safe


def number(value: object) -> float | None:
    """A finite number, or the same as a string; booleans are none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        if len(value) > _NUMBER_CHARS or not _NUMBER.fullmatch(value):
            return None
    elif not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
