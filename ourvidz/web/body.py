"""Reading a JSON body. What is not plain JSON in UTF-8 is refused here; what it says is judged elsewhere."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from starlette.requests import Request

from ourvidz.errors import InvalidParameters

RULE = "JSON in UTF-8"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def parse_json(text: str | bytes, *, field: str | None = None) -> Any:
    """The value a JSON text stands for. `InvalidParameters` for anything else, NaN and infinities too."""
    try:
        # json.loads would let surrogates and UTF-16 through when given bytes.
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as broken:
        reason = "it nests too deeply" if isinstance(broken, RecursionError) else _reason(broken)
        raise InvalidParameters(f"The body is not JSON: {reason}.", field=field, rule=RULE) from None


def _reason(broken: ValueError) -> str:
    if isinstance(broken, json.JSONDecodeError):
        return f"{broken.msg} at line {broken.lineno} column {broken.colno}"
    return "it is not UTF-8" if isinstance(broken, UnicodeDecodeError) else "a number is out of range"


async def read_json(request: Request) -> Any:
    """The value of a request's JSON body."""
    return parse_json(await request.body())
