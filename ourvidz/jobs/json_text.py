"""Parses JSON texts of callers: plain JSON in UTF-8, without NaN and infinities."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from ourvidz.errors import InvalidParameters

RULE = "JSON in UTF-8"


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def parse_json(text: str | bytes, *, field: str | None = None) -> Any:
    """The value of a JSON text. Raises `InvalidParameters` for anything else, NaN and infinities included.

    `field` is the request field that the text came from, for the error.
    """
    try:
        # json.loads accepts surrogates and UTF-16 in bytes.
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, parse_constant=_reject_constant, parse_float=_finite_float)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else _reason(error)
        raise InvalidParameters(f"The body is not JSON: {reason}.", field=field, rule=RULE) from None


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number is out of range"
