"""The `Retry-After` header is read in both of its forms, and nothing in it raises."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ourvidz.net.retry_after import parse_retry_after

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Fri, 15 Jan 2027 08:00:30 -0000", 30.0),
        ("Fri, 99 Jan 2027 08:00:30 GMT", None),
        ("Fri, 15 Jan 99999999999999999999 08:00:30 GMT", None),
        ("Fri, 15 Jan 2027 99999999999999999999:00:30 GMT", None),
        ("Fri, 15 Jan 2027 08:00:30 -9999999999999999999999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """Both forms of the standard are read, and nothing else."""
    assert parse_retry_after(header, now=NOW) == seconds


@settings(deadline=None)
@given(st.text())
def test_any_retry_after_header_is_read_without_an_exception(header: str) -> None:
    """The receiver controls this header."""
    seconds = parse_retry_after(header, now=NOW)
    assert seconds is None or seconds >= 0
