"""Cursors, and how far one page looks: the same in both stores."""

from __future__ import annotations

import re

from ourvidz.errors import InvalidParameters
from ourvidz.ledger.record import Record

SCAN_LIMIT = 2000
"""How many records one page reads at most while it looks for those a filter wants."""


def dump_cursor(place: int) -> str:
    """Where to go on: below this place in the line of registrations."""
    return f"r{place:x}"


def load_cursor(cursor: str | None) -> int | None:
    """The place a cursor stands for. `InvalidParameters` when it is none of ours."""
    if cursor is None:
        return None
    if not re.fullmatch(r"r[0-9a-f]{1,13}", cursor):
        raise InvalidParameters(
            "the cursor is not one that this list gave out",
            field="cursor",
            rule="cursor of a page",
            value=cursor,
        )
    return int(cursor[1:], 16)


def wanted(record: Record, type: str | None, status: str | None) -> bool:
    """Whether a record passes the filters of a page."""
    return (type is None or record.type == type) and (status is None or record.status == status)


def checked_after(after: str) -> str:
    """A stream id to go on after. `InvalidParameters` when it cannot be one."""
    if not re.fullmatch(r"\d{1,19}(-\d{1,19})?", after, flags=re.ASCII):
        raise InvalidParameters(
            "not the id of an event", field="after", rule="id of a stream item", value=after
        )
    return after
