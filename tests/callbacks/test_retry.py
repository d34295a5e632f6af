"""When a callback is tried again."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz.callbacks.retry import (
    CAP_S,
    MIN_DELIVERIES,
    RETRY_AFTER_CAP_S,
    Again,
    Dead,
    Decision,
    Delivered,
    decide,
    retry_after_s,
)

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
DAY_S = 86_400.0
WINDOW_S = 26 * 3600.0


def decided(kind: str = "completed", **chosen: object) -> Decision:
    given_: dict[str, object] = {
        "deliveries": 1,
        "age_s": 0.0,
        "status": None,
        "retry_after_s": None,
        "window_s": WINDOW_S,
        "rng": random.Random(1),
    }
    return decide(kind, **given_ | chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["processing", "completed", "failed", "cancelled"])
@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(kind: str, status: int) -> None:
    """Receivers choose their own yes."""
    assert decided(kind, status=status) == Delivered()


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("status", [None, 408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_a_terminal_event_is_retried_where_it_may_help(kind: str, status: int | None) -> None:
    """These say: not now."""
    assert isinstance(decided(kind, status=status), Again)


@pytest.mark.parametrize("status", [101, 300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 410, 413, 422])
def test_any_other_answer_is_a_dead_letter(status: int) -> None:
    """These say: never like this. A redirect is a wrong address, not a way."""
    assert decided(status=status) == Dead()


@pytest.mark.parametrize("status", [None, 302, 400, 429, 503])
def test_processing_gets_one_attempt(status: int | None) -> None:
    """It must not hold up the terminal event behind it."""
    assert decided("processing", status=status, retry_after_s=1.0) == Dead()


@given(
    deliveries=st.integers(1, 5000),
    age_s=st.floats(0, 2 * WINDOW_S),
    seed=st.integers(),
    asked=st.none() | st.floats(0, 1e9),
)
def test_no_delay_leaves_its_bounds(deliveries: int, age_s: float, seed: int, asked: float | None) -> None:
    """Never negative, never beyond the cap and what was asked for, never beyond the window."""
    decision = decided(deliveries=deliveries, age_s=age_s, retry_after_s=asked, rng=random.Random(seed))
    if age_s >= WINDOW_S and deliveries >= MIN_DELIVERIES:
        assert decision == Dead()
        return
    assert isinstance(decision, Again)
    assert 0 <= decision.due_in_s <= CAP_S + min(asked or 0, RETRY_AFTER_CAP_S)
    if age_s < WINDOW_S:
        assert age_s + decision.due_in_s <= WINDOW_S * (1 + 1e-9)


@given(asked=st.floats(0, RETRY_AFTER_CAP_S), deliveries=st.integers(1, 100), seed=st.integers())
def test_retry_after_is_honoured(asked: float, deliveries: int, seed: int) -> None:
    """A receiver that names a time is not asked before it."""
    decision = decided(
        status=429, deliveries=deliveries, age_s=60.0, retry_after_s=asked, rng=random.Random(seed)
    )
    assert isinstance(decision, Again)
    assert decision.due_in_s >= asked


def test_the_jitter_is_full() -> None:
    """Delays spread from nothing to the ceiling, so that receivers do not get bursts."""
    rng = random.Random(7)
    delays = [decided(deliveries=6, age_s=1000.0, rng=rng).due_in_s for _ in range(500)]  # type: ignore[union-attr]
    assert min(delays) < 2
    assert 30 < max(delays) <= 32


@given(seed=st.integers(), down_s=st.floats(0.1, 30))
def test_a_receiver_that_was_down_for_seconds_waits_for_seconds(seed: int, down_s: float) -> None:
    """Ten seconds down, and the callback is there within thirty: no wait exceeds what has already passed."""
    rng, age_s, deliveries = random.Random(seed), 0.0, 1
    while age_s < down_s:
        decision = decided(deliveries=deliveries, age_s=age_s, rng=rng)
        assert isinstance(decision, Again)
        age_s, deliveries = age_s + decision.due_in_s, deliveries + 1
        if deliveries > 1000:
            return
    assert age_s - down_s <= max(1.0, down_s)


def test_an_event_is_tried_for_a_day() -> None:
    """A receiver that is down for a day still gets its callback, without thousands of tries."""
    rng, age_s, deliveries = random.Random(3), 0.0, 1
    while isinstance(decision := decided(deliveries=deliveries, age_s=age_s, rng=rng), Again):
        last_s = age_s
        age_s, deliveries = age_s + decision.due_in_s, deliveries + 1
    assert last_s >= DAY_S
    assert age_s >= DAY_S
    assert deliveries < 500


def test_an_old_event_is_not_given_up_at_the_first_failure() -> None:
    """A replayed dead letter gets a handful of tries although its window is long over."""
    assert isinstance(decided(age_s=10 * DAY_S, deliveries=1), Again)
    assert decided(age_s=10 * DAY_S, deliveries=MIN_DELIVERIES) == Dead()


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
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """Both forms of the standard, and nothing else."""
    assert retry_after_s(header, now=NOW) == seconds


@given(st.text())
def test_any_retry_after_header_is_read_without_an_exception(header: str) -> None:
    """A receiver's header is not ours to trust."""
    found = retry_after_s(header, now=NOW)
    assert found is None or found >= 0
