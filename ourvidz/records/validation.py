"""Which stored records this release can handle."""

from __future__ import annotations

import math

from ourvidz.errors import InternalError
from ourvidz.jobs.catalog import CATALOG
from ourvidz.records.codec import Fields, load_record
from ourvidz.records.record import FINISHED, Record

LARGEST_NUMBER = 2**53
"""Largest number that a script reads exactly. One above it would break the counters of all jobs."""
STATUSES = {"queued", "processing", *FINISHED}


class UnreadableRecord(Exception):
    """A record that this release cannot handle; the message says why, without what is in it."""


def load_valid_record(job_id: str, fields: Fields) -> Record:
    """Return the record in a hash. Raises `UnreadableRecord` for one that this release cannot handle: of a
    newer version, of an unknown job type, damaged."""
    try:
        record = load_record(job_id, fields)
    except InternalError:
        raise UnreadableRecord(f"it has a record of version {fields['v']}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableRecord(f"its record cannot be decoded: {describe_error(error)}") from None
    if record.type not in CATALOG:
        raise UnreadableRecord(f"its type {record.type!r} is unknown")
    if record.status not in STATUSES:
        raise UnreadableRecord(f"its status {record.status!r} is unknown")
    _check_numbers(record)
    return record


def _check_numbers(record: Record) -> None:
    """Raise `UnreadableRecord` for numbers that no script can order or count."""
    times = (
        record.created_at, record.queued_at, record.due_at, record.claimed_at, record.finished_at,
        record.published_at, record.lease_until, record.progress,
    )  # fmt: skip
    numbers = record.run, record.attempt, record.fence, record.priority, record.order, record.publishes
    if not all(math.isfinite(time) for time in times if time is not None):
        raise UnreadableRecord("one of its times is no number")
    if any(abs(number) > LARGEST_NUMBER for number in numbers):
        raise UnreadableRecord("one of its numbers is too large")
    if record.status == "processing" and record.lease_until is None:
        raise UnreadableRecord("it is processing without a lease")
    if record.finished and record.finished_at is None:
        raise UnreadableRecord("it has ended at no time")


def describe_error(error: Exception) -> str:
    """The kind of an error, and the field that is missing, never a value: values may contain prompts."""
    return f"KeyError {error}" if isinstance(error, KeyError) else type(error).__name__


def is_number(text: str, largest: float) -> bool:
    """Whether a stored text is a number from 0 to `largest`."""
    try:
        return 0 <= float(text) <= largest
    except ValueError:
        return False


def is_count(text: str | None, largest: float) -> bool:
    """Whether a stored text is absent, or a whole number from 0 to `largest`."""
    return text is None or (text.isascii() and text.isdigit() and int(text) <= largest)
