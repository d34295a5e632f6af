"""Makes unvalidated values safe to store and to show: JSON types, bounded depth, valid Unicode."""

from __future__ import annotations

import datetime
import math
import uuid
from decimal import Decimal
from typing import Any

MAX_DEPTH = 32
"""More than any caller nests, and less than JSON writers accept."""

INTEGER_BITS = 256
SHOWN_CHARS = 80


def to_json_safe(value: object, depth: int = MAX_DEPTH) -> Any:
    """Copy `value` into JSON types that every writer accepts; what is nested deeper than `depth` becomes
    None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= INTEGER_BITS else summarize(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, uuid.UUID, Decimal)):
        return str(value)
    if depth == 0:
        return None
    if isinstance(value, dict):
        return {replace_surrogates(str(key)): to_json_safe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_safe(item, depth - 1) for item in value]
    return summarize(value)


def replace_surrogates(text: str) -> str:
    """`text` with unpaired surrogates replaced by question marks: UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_storable(text: str) -> bool:
    """Whether `text` can be stored unchanged: it has neither NUL characters nor unpaired surrogates."""
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def summarize(value: object) -> str | int | float | bool | None:
    """Summarise a value for an error message: scalars themselves, at most 80 characters, others by their
    size."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return (
            int(value) if value.bit_length() <= INTEGER_BITS else f"an integer of {value.bit_length()} bits"
        )
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        short = value if len(value) <= SHOWN_CHARS else value[: SHOWN_CHARS - 1] + "…"
        return replace_surrogates(short)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
