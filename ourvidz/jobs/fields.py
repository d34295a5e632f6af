"""Typed access to the fields of a payload.

Each method takes the paths at which callers write a value, in order of precedence. The first path that is
present is used, even if its value is invalid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ourvidz.errors import CallerError, InvalidParameters, InvalidPrompt
from ourvidz.jobs.ranges import PROMPT_CHARS, Range
from ourvidz.jobs.sanitize import is_storable, summarize, to_json_safe

CONTAINERS = ("config", "metadata")
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
IDENTIFIER_RULE = "1 to 128 characters of A-Z a-z 0-9 . _ : - that start with a letter or a digit"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMBER_CHARS = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FieldValue:
    """A value of the payload and its path, such as `config.steps`."""

    path: str
    value: Any


def or_default(value: T | None, default: T) -> T:
    """`value`, or `default` if it is None; 0 and False are kept."""
    return default if value is None else value


def fill_in(sent: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a job class: `sent` with the values of `defaults` in place of None.

    A field that is None in `sent` and has no value in `defaults` is left to the default of the class.
    `defaulted`, itself an argument of the job classes, names all fields that were None, and those that an
    earlier call filled in.
    """
    missing = {name for name, value in sent.items() if value is None}
    present = {name: value for name, value in sent.items() if value is not None}
    filled = {name: value for name, value in defaults.items() if name in missing}
    return present | filled | {"defaulted": frozenset(missing) | sent.get("defaulted", frozenset())}


def invalid_value(
    path: str, rule: str, value: object, *, error: type[CallerError] = InvalidParameters
) -> CallerError:
    """Build the error for a value that breaks its rule; the caller raises it. The message quotes the
    value."""
    summary = summarize(value)
    quoted = repr(summary) if isinstance(value, str) else str(summary)
    return error(f"{path} must be {rule}, not {quoted}.", field=path, rule=rule, value=summary)


def invalid_text(
    path: str, rule: str, value: object, *, error: type[CallerError] = InvalidParameters
) -> CallerError:
    """Like `invalid_value`, for text that people write: its error does not quote it, as errors are logged."""
    if not isinstance(value, str):
        return invalid_value(path, rule, value, error=error)
    summary = f"a text of {len(value):,} characters"
    return error(f"{path} must be {rule}; this is {summary}.", field=path, rule=rule, value=summary)


def missing_field(path: str, rule: str, *, error: type[CallerError] = InvalidParameters) -> CallerError:
    """Build the error for a missing value; the caller raises it."""
    return error(f"{path} is missing: {rule}.", field=path, rule=rule)


def check_text(path: str, value: object, *, limit: int, error: type[CallerError] = InvalidParameters) -> str:
    """Return `value` if it is text of at most `limit` characters that can be stored. Raises `error`."""
    rule = f"text of at most {limit:,} characters"
    if not isinstance(value, str) or len(value) > limit:
        raise invalid_text(path, rule, value, error=error)
    if not is_storable(value):
        rule = "text without NUL characters and unpaired surrogates"
        raise invalid_text(path, rule, value, error=error)
    return value


class Fields:
    """One payload. Fields that are not read are returned by `unread`. Raises `InvalidParameters` if the
    payload, its `config` or its `metadata` is no object."""

    def __init__(self, payload: object) -> None:
        if not isinstance(payload, dict):
            rule = "a JSON object"
            kind = summarize(payload) if isinstance(payload, (list, tuple)) else type(payload).__name__
            raise InvalidParameters(f"The payload must be {rule}, not {kind}.", rule=rule, value=kind)
        self._levels: dict[str, dict[Any, Any]] = {"": payload}
        for name in CONTAINERS:
            value = payload.get(name)
            if value is None or value == "":
                value = {}
            if not isinstance(value, dict):
                raise invalid_value(name, "an object", value)
            self._levels[name] = value
        self._read: set[str] = set()

    def first(self, *paths: str) -> FieldValue | None:
        """The value at the first of `paths` that is present; null and "" count as absent."""
        self._read.update(paths)
        for path in paths:
            level, _, name = path.rpartition(".")
            value = self._levels[level].get(name)
            if value is not None and not (isinstance(value, str) and value == ""):
                return FieldValue(path, value)
        return None

    def text(self, *paths: str, limit: int = PROMPT_CHARS) -> str | None:
        """The text at the first of `paths` that is present, at most `limit` characters; None if none is."""
        field = self.first(*paths)
        return None if field is None else check_text(field.path, field.value, limit=limit)

    def prompt(self) -> str:
        """The prompt as it was sent; "" if there is none, or only white space."""
        field = self.first("prompt")
        if field is None:
            return ""
        text = check_text(field.path, field.value, limit=PROMPT_CHARS, error=InvalidPrompt)
        return text if text.strip() else ""

    def number(self, *paths: str, within: Range) -> float | None:
        """A finite number in the range `within`; numeric strings are accepted, booleans are not."""
        field = self.first(*paths)
        if field is None:
            return None
        value = parse_number(field.value)
        if value is None or value not in within:
            raise invalid_value(field.path, within.rule, field.value)
        return value

    def integer(self, *paths: str, within: Range) -> int | None:
        """A whole number in the range `within`: 25, 25.0 and "25" are accepted."""
        value = self.number(*paths, within=within)
        return None if value is None else int(value)

    def one_of(self, *paths: str, numbers: tuple[int, ...]) -> int | None:
        """One of the listed numbers."""
        field = self.first(*paths)
        if field is None:
            return None
        value = parse_number(field.value)
        if value is None or value not in numbers:
            raise invalid_value(field.path, _join_words([str(number) for number in numbers]), field.value)
        return int(value)

    def boolean(self, *paths: str) -> bool | None:
        """A JSON boolean, or one of the strings "true" and "false" in any case."""
        field = self.first(*paths)
        if field is None:
            return None
        if isinstance(field.value, bool):
            return field.value
        if isinstance(field.value, str) and field.value.lower() in ("true", "false"):
            return field.value.lower() == "true"
        raise invalid_value(field.path, "true or false", field.value)

    def choice(self, *paths: str, among: Collection[str]) -> str | None:
        """One of the listed words."""
        field = self.first(*paths)
        if field is None:
            return None
        if isinstance(field.value, str) and field.value in among:
            return field.value
        raise invalid_value(field.path, _join_words(list(among)), field.value)

    def identifier(self, *paths: str) -> str | None:
        """An id. It becomes part of keys and paths, so its alphabet is small."""
        field = self.first(*paths)
        if field is None:
            return None
        if isinstance(field.value, str) and IDENTIFIER.fullmatch(field.value):
            return field.value
        raise invalid_value(field.path, IDENTIFIER_RULE, field.value)

    def lenient(self, read: Callable[..., T | None], *paths: str) -> T | None:
        """Read an optional field with the method `read`; a value that it rejects counts as absent, and as
        unread."""
        try:
            return read(*paths)
        except CallerError:
            self._read.difference_update(paths)
            return None

    def passthrough(self, *paths: str) -> Any:
        """A value of any type, made safe to store; None if absent."""
        field = self.first(*paths)
        return None if field is None else to_json_safe(field.value)

    def unread(self) -> dict[str, Any]:
        """The fields that were not read, nested as in the payload and made safe to store."""
        rest: dict[Any, Any] = {}
        for level, content in self._levels.items():
            prefix = f"{level}." if level else ""
            remaining = {
                key: value
                for key, value in content.items()
                if f"{prefix}{key}" not in self._read and (level or key not in CONTAINERS)
            }
            if level and remaining:
                rest[level] = remaining
            elif not level:
                rest.update(remaining)
        safe: dict[str, Any] = to_json_safe(rest)
        return safe


def parse_number(value: object) -> float | None:
    """`value` as a finite float; None for booleans, other types and strings that are no number."""
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


def _join_words(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
