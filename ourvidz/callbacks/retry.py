"""The retry policy of callbacks: pure arithmetic over status codes and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ourvidz.records.registrations import REGISTRATION_KINDS

BASE_DELAY_S = 1.0
MAX_DELAY_S = 900.0
MAX_RETRY_AFTER_S = 3600.0
MIN_DELIVERIES = 10
"""Deliveries of an event even after its window: it was replayed, or waited while no worker ran."""

RETRIED_STATUSES = frozenset({408, 409, 425, 429})
"""The retried ones below 500; all from 500 on are retried too."""
NOT_UNDERSTOOD_STATUSES = frozenset({400, 404, 405, 410, 422})
"""The answers of a function that does not know that workers leave, or does not exist."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver accepted the event."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Deliver again in `due_in_s` seconds."""

    due_in_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not deliver again."""


Decision = Delivered | Retry | GiveUp


class Rng(Protocol):
    """The source of jitter; `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """A random number between a and b."""


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
    """Decide how an event continues after a delivery.

    `kind` is the event's: `processing` events are delivered once and never retried. A registration is retried
    after every answer but success: the function refuses a worker whose shim does not answer yet. That a
    worker is `gone` counts as delivered also when the receiver does not understand it. `deliveries` includes
    this one. `age_s` is the time since the event, `window_s` how long terminal events are retried.
    `status` is None if there was no response; `retry_after_s` is the response's `Retry-After`. The last
    delivery of an event is due at the end of its window.
    """
    if status is not None and 200 <= status < 300:
        return Delivered()
    if kind == "gone" and status in NOT_UNDERSTOOD_STATUSES:
        return Delivered()
    if kind not in REGISTRATION_KINDS and (kind == "processing" or not is_retryable(status)):
        return GiveUp()
    left_s = window_s - age_s
    if left_s <= 0 and deliveries >= MIN_DELIVERIES:
        return GiveUp()
    requested_s = min(max(retry_after_s or 0.0, 0.0), MAX_RETRY_AFTER_S)
    delay_s = requested_s + rng.uniform(0.0, max_backoff_s(deliveries, age_s))
    return Retry(min(delay_s, left_s) if left_s > 0 else delay_s)


def is_retryable(status: int | None) -> bool:
    """Whether the same request may succeed later; None means that there was no response."""
    return status is None or status in RETRIED_STATUSES or status >= 500


def max_backoff_s(deliveries: int, age_s: float) -> float:
    """The upper bound of the backoff in seconds; with full jitter the delay is uniform between 0 and this.

    It doubles with each delivery up to 900 s, and never exceeds the event's age: after a short outage of the
    receiver the next delivery comes soon.
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return min(MAX_DELAY_S, BASE_DELAY_S * 2.0 ** min(max(deliveries, 1) - 1, 20), max(BASE_DELAY_S, age_s))
