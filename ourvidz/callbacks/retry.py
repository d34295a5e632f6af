"""When a callback is tried again: pure arithmetic over status codes and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

BASE_S = 1.0
CAP_S = 900.0
RETRY_AFTER_CAP_S = 3600.0
MIN_DELIVERIES = 10
"""What an event gets even when it is older than the window: a replayed one, or one that waited for us."""

RETRIED = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver took it."""


@dataclass(frozen=True, slots=True)
class Again:
    """Try again in `due_in_s` seconds."""

    due_in_s: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Give up."""


Decision = Delivered | Again | Dead


class Rng(Protocol):
    """Where the jitter comes from; `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """A number between a and b."""


def decide(
    kind: str,
    *,
    deliveries: int,
    age_s: float,
    status: int | None,
    retry_after_s: float | None,
    window_s: float,
    rng: Rng,
) -> Decision:
    """What follows from one delivery. `deliveries` counts it, `age_s` is the event's, `status` None means
    that nobody answered. The last try of an event falls on the end of its window."""
    if status is not None and 200 <= status < 300:
        return Delivered()
    if kind == "processing" or not retried(status):
        return Dead()
    left_s = window_s - age_s
    if left_s <= 0 and deliveries >= MIN_DELIVERIES:
        return Dead()
    asked_s = min(max(retry_after_s or 0.0, 0.0), RETRY_AFTER_CAP_S)
    wait_s = asked_s + rng.uniform(0.0, ceiling_s(deliveries, age_s))
    return Again(min(wait_s, left_s) if left_s > 0 else wait_s)


def retried(status: int | None) -> bool:
    """Whether the same request may succeed later."""
    return status is None or status in RETRIED or status >= 500


def ceiling_s(deliveries: int, age_s: float) -> float:
    """The longest backoff after so many deliveries, for full jitter below it.

    Besides doubling, it never exceeds the event's age: a receiver that was away for a short time is not
    made to wait for a long one. https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return min(CAP_S, BASE_S * 2.0 ** min(max(deliveries, 1) - 1, 20), max(BASE_S, age_s))


def retry_after_s(header: str | None, *, now: datetime) -> float | None:
    """Seconds from a `Retry-After` header, which is a number or an HTTP date; None when it is neither."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (aware - now).total_seconds())
