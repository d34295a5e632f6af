"""Whether anybody has been at work for a queue lately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.ledger.store import Ledger
from ourvidz.liveness.availability import WorkerAvailability

MakeLedger = Callable[..., Any]


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counted(Ledger):
    """Knows how often it was asked; `seen_at` is its only answer."""

    asked = 0
    seen_at: float | None = None

    def queue_seen_at(self, queue: str) -> float | None:
        self.asked += 1
        return self.seen_at


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_young_shim_misses_nobody(clock: Clock, make_ledger: MakeLedger) -> None:
    """Its own start is where counting begins, and nothing is asked."""
    ledger = make_ledger(Counted, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.now += 899
    assert not availability.is_missing("sdxl_queue")
    assert ledger.asked == 0


def test_a_queue_that_was_never_served_is_missed_after_the_grace_time(
    clock: Clock, make_ledger: MakeLedger
) -> None:
    """Then submitting to it helps nobody."""
    ledger = make_ledger(Counted, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.now += 901
    assert availability.is_missing("sdxl_queue")


def test_a_worker_that_comes_back_is_noticed_at_once(clock: Clock, make_ledger: MakeLedger) -> None:
    """The refusal lasts no longer than the absence."""
    ledger = make_ledger(Counted, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.now += 901
    assert availability.is_missing("sdxl_queue")
    ledger.seen_at = clock.now
    assert not availability.is_missing("sdxl_queue")


def test_the_ledger_is_asked_only_when_its_answer_has_run_out(clock: Clock, make_ledger: MakeLedger) -> None:
    """A thousand submissions a second must not ask a thousand times."""
    ledger = make_ledger(Counted, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.now += 1000
    ledger.seen_at = clock.now - 100
    for _ in range(50):
        assert not availability.is_missing("sdxl_queue")
    assert ledger.asked == 1
    clock.now += 799
    assert not availability.is_missing("sdxl_queue")
    clock.now += 2
    assert availability.is_missing("sdxl_queue")
    assert ledger.asked == 2
