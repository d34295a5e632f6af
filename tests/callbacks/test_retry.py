"""The retry policy: which events are delivered again, and after what delay."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ourvidz.callbacks.retry import (
    MAX_DELAY_S,
    MAX_RETRY_AFTER_S,
    MIN_DELIVERIES,
    Decision,
    Delivered,
    GiveUp,
    Retry,
    decide,
)

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
DAY_S = 86_400.0
WINDOW_S = 26 * 3600.0


def decision_for(kind: str = "completed", **arguments: object) -> Decision:
    defaults: dict[str, object] = {
        "deliveries": 1,
        "age_s": 0.0,
        "status": None,
        "retry_after_s": None,
        "window_s": WINDOW_S,
        "rng": random.Random(1),
    }
    return decide(kind, **defaults | arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["processing", "completed", "failed", "cancelled"])
@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(kind: str, status: int) -> None:
    """Receivers differ in which of them they send."""
    assert decision_for(kind, status=status) == Delivered()


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("status", [None, 408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_a_terminal_event_is_retried_where_it_may_help(kind: str, status: int | None) -> None:
    """These statuses mean that the same request may succeed later."""
    assert isinstance(decision_for(kind, status=status), Retry)


@pytest.mark.parametrize("status", [101, 300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 410, 413, 422])
def test_any_other_status_is_given_up(status: int) -> None:
    """The same request would fail again. A redirect could lead a signed body to any host."""
    assert decision_for(status=status) == GiveUp()


@pytest.mark.parametrize("status", [None, 302, 400, 429, 503])
def test_processing_gets_one_attempt(status: int | None) -> None:
    """A retry would delay the terminal event behind it."""
    assert decision_for("processing", status=status, retry_after_s=1.0) == GiveUp()


@settings(deadline=None)  # a busy machine
@given(
    deliveries=st.integers(1, 5000),
    age_s=st.floats(0, 2 * WINDOW_S),
    seed=st.integers(),
    requested=st.none() | st.floats(0, 1e9),
)
def test_delays_stay_within_their_bounds(
    deliveries: int, age_s: float, seed: int, requested: float | None
) -> None:
    """Never negative, never above the maximum plus `Retry-After`, never beyond the window."""
    decision = decision_for(
        deliveries=deliveries, age_s=age_s, retry_after_s=requested, rng=random.Random(seed)
    )
    if age_s >= WINDOW_S and deliveries >= MIN_DELIVERIES:
        assert decision == GiveUp()
        return
    assert isinstance(decision, Retry)
    assert 0 <= decision.due_in_s <= MAX_DELAY_S + min(requested or 0, MAX_RETRY_AFTER_S)
    if age_s < WINDOW_S:
        assert age_s + decision.due_in_s <= WINDOW_S * (1 + 1e-9)


@settings(deadline=None)
@given(requested=st.floats(0, MAX_RETRY_AFTER_S), deliveries=st.integers(1, 100), seed=st.integers())
def test_retry_after_is_honoured(requested: float, deliveries: int, seed: int) -> None:
    """No request is sent before the time that the receiver named."""
    decision = decision_for(
        status=429, deliveries=deliveries, age_s=60.0, retry_after_s=requested, rng=random.Random(seed)
    )
    assert isinstance(decision, Retry)
    assert decision.due_in_s >= requested


def test_the_jitter_is_full() -> None:
    """Delays are spread from 0 to the upper bound, so that receivers do not get bursts."""
    rng = random.Random(7)
    delays = [decision_for(deliveries=6, age_s=1000.0, rng=rng).due_in_s for _ in range(500)]  # type: ignore[union-attr]
    assert min(delays) < 2
    assert 30 < max(delays) <= 32


@settings(deadline=None)
@given(seed=st.integers(), down_s=st.floats(0.1, 30))
def test_after_a_short_outage_the_next_delivery_is_soon(seed: int, down_s: float) -> None:
    """The delay never exceeds the time that has passed since the event."""
    rng, age_s, deliveries = random.Random(seed), 0.0, 1
    while age_s < down_s:
        decision = decision_for(deliveries=deliveries, age_s=age_s, rng=rng)
        assert isinstance(decision, Retry)
        age_s, deliveries = age_s + decision.due_in_s, deliveries + 1
        if deliveries > 1000:
            return
    assert age_s - down_s <= max(1.0, down_s)


def test_an_event_is_retried_for_a_day() -> None:
    """A receiver that is down for a day still gets its callback, after fewer than 500 deliveries."""
    rng, age_s, deliveries = random.Random(3), 0.0, 1
    while isinstance(decision := decision_for(deliveries=deliveries, age_s=age_s, rng=rng), Retry):
        last_s = age_s
        age_s, deliveries = age_s + decision.due_in_s, deliveries + 1
    assert last_s >= DAY_S
    assert age_s >= DAY_S
    assert deliveries < 500


def test_an_old_event_is_not_given_up_at_the_first_failure() -> None:
    """A replayed dead letter gets ten deliveries although its window is over."""
    assert isinstance(decision_for(age_s=10 * DAY_S, deliveries=1), Retry)
    assert decision_for(age_s=10 * DAY_S, deliveries=MIN_DELIVERIES) == GiveUp()


@pytest.mark.parametrize("status", [None, 301, 400, 401, 403, 404, 422, 500, 503])
def test_a_registration_is_retried_after_every_answer_but_success(status: int | None) -> None:
    """A function refuses a worker whose shim does not answer yet, and a gateway a key that changes."""
    for kind in ("registered", "updated"):
        assert isinstance(decision_for(kind, status=status), Retry)
        assert decision_for(kind, status=200) == Delivered()


@pytest.mark.parametrize(
    ("status", "settled"),
    [
        (200, True),
        (400, True),
        (404, True),
        (422, True),
        (401, False),
        (403, False),
        (503, False),
        (None, False),
    ],
)
def test_a_departure_that_a_function_does_not_understand_is_settled(
    status: int | None, settled: bool
) -> None:
    """A function of today knows none; with a key that is refused it was not asked."""
    decision = decision_for("gone", status=status)
    assert decision == Delivered() if settled else isinstance(decision, Retry)
