"""Values that nobody validates, made safe to store: plain JSON, shallow, valid Unicode."""

from __future__ import annotations

import datetime
import math
import uuid
from decimal import Decimal
from typing import Any

DEPTH = 32
"""Deeper than any caller nests, and far from where serialisers give up."""

INTEGER_BITS = 256
SHOWN_CHARS = 80


def plain(value: object, depth: int = DEPTH) -> Any:
    """A copy of `value` that every JSON writer accepts; what lies deeper than `depth` becomes None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= INTEGER_BITS else shorten(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, uuid.UUID, Decimal)):
        return str(value)
    if depth == 0:
        return None
    if isinstance(value, dict):
        return {well_formed(str(key)): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth - 1) for item in value]
    return shorten(value)


def well_formed(text: str) -> str:
    """`text` with every unpaired surrogate replaced: UTF-8 has no form for them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_well_formed(text: str) -> bool:
    """Whether JSON writers and databases take `text` as it is."""
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shorten(value: object) -> str | int | float | bool | None:
    """What an error may show of a value: scalars as they are, the rest by its shape."""
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
        return well_formed(short)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
