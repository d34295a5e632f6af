"""Whether a queue has had a live worker within the grace period."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.ledger.store import Ledger
from ourvidz.liveness.availability import WorkerAvailability
from tests.factories import ManualClock

MakeLedger = Callable[..., Any]


class CountingLedger(Ledger):
    """A ledger that counts the reads; `seen_at` is what it returns."""

    reads = 0
    seen_at: float | None = None

    def queue_seen_at(self, queue: str) -> float | None:
        self.reads += 1
        return self.seen_at


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_no_queue_is_missing_a_worker_right_after_the_start(
    clock: ManualClock, make_ledger: MakeLedger
) -> None:
    """The grace period starts with the process, and the ledger is not read before its end."""
    ledger = make_ledger(CountingLedger, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.advance(899)
    assert not availability.is_missing("sdxl_queue")
    assert ledger.reads == 0


def test_a_queue_that_never_had_a_worker_is_missing_one_after_the_grace_period(
    clock: ManualClock, make_ledger: MakeLedger
) -> None:
    """Then its jobs would only wait."""
    ledger = make_ledger(CountingLedger, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.advance(901)
    assert availability.is_missing("sdxl_queue")


def test_a_worker_that_comes_back_is_noticed_at_once(clock: ManualClock, make_ledger: MakeLedger) -> None:
    """Refusals end with the absence."""
    ledger = make_ledger(CountingLedger, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.advance(901)
    assert availability.is_missing("sdxl_queue")
    ledger.seen_at = clock.now
    assert not availability.is_missing("sdxl_queue")


def test_the_ledger_is_read_only_when_its_last_answer_is_too_old(
    clock: ManualClock, make_ledger: MakeLedger
) -> None:
    """A thousand submissions a second must not read it a thousand times."""
    ledger = make_ledger(CountingLedger, clock=clock)
    availability = WorkerAvailability(ledger, 900, clock=clock)
    clock.advance(1000)
    ledger.seen_at = clock.now - 100
    for _ in range(50):
        assert not availability.is_missing("sdxl_queue")
    assert ledger.reads == 1
    clock.advance(799)
    assert not availability.is_missing("sdxl_queue")
    clock.advance(2)
    assert availability.is_missing("sdxl_queue")
    assert ledger.reads == 2
