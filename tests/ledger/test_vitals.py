"""The numbers by which a watchdog judges the ledger, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ourvidz.records.vitals import QueueVitals, Vitals
from tests.recovery.corruption import DamagedLedger, damaged_ledger


@pytest.fixture
def system() -> Iterator[DamagedLedger]:
    with damaged_ledger() as made:
        yield made


def test_an_empty_ledger_has_no_ages(system: DamagedLedger) -> None:
    """Nothing was ever swept, queued or claimed."""
    empty = {name: QueueVitals() for name in ("sdxl_queue", "wan_queue", "chat_queue")}
    assert system.ledger.vitals() == Vitals(queues=empty)


def test_the_age_and_the_failures_of_the_last_sweep(system: DamagedLedger) -> None:
    """A sweep that fails in a part counts as one, and says so."""
    system.broker.fail_in = {"wan_queue", "chat_queue"}
    system.sweep()
    system.clock.advance(7)
    vitals = system.ledger.vitals()
    assert (vitals.sweep_age_s, vitals.failed_phases) == (7, ("wan_queue", "chat_queue"))


def test_a_lease_is_stuck_a_minute_after_its_end(system: DamagedLedger) -> None:
    """Sweeps would have rescued its job."""
    system.claim("a")
    system.clock.advance(69)
    assert system.ledger.vitals().stuck_leases == 0
    system.clock.advance(2)
    assert system.ledger.vitals().stuck_leases == 1


def test_the_oldest_due_job_of_all_priorities_counts(system: DamagedLedger) -> None:
    """Also one that waits behind more urgent ones, and not one whose retry is due later."""
    claim = system.claim("later")
    system.ledger.release(claim, code="OOM_ERROR", due_in_s=1000)
    system.add("old")
    system.clock.advance(50)
    system.add("new")
    assert system.ledger.raise_priority("new", run=1, priority=0)
    system.clock.advance(5)
    assert system.ledger.vitals().queues["sdxl_queue"] == QueueVitals(oldest_s=55, last_claim_s=55)
    system.client.delete(system.key("job:old"))
    assert system.ledger.vitals().queues["sdxl_queue"].oldest_s == 5


@pytest.mark.parametrize("retry_in_s", [1, 1000])
def test_jobs_that_were_put_off_hide_none_that_waits_longer(system: DamagedLedger, retry_in_s: int) -> None:
    """A failed attempt keeps its place in the queue. A worker that gives up one job after the other would
    make the queue look young, while the jobs behind wait."""
    failed = [system.claim(f"failed{number}") for number in range(60)]
    system.add("old")
    system.clock.advance(50)
    for claim in failed:
        system.ledger.release(claim, code="OOM_ERROR", due_in_s=retry_in_s)
    system.add("new")
    system.clock.advance(5)
    assert system.ledger.vitals().queues["sdxl_queue"].oldest_s == 55


def test_a_key_that_holds_no_record_hides_no_vitals(system: DamagedLedger) -> None:
    """Health is asked when something is broken; an answer of 500 would take a shim out of service."""
    system.add("bad")
    system.add("old")
    system.client.delete(system.key("job:bad"))
    system.client.set(system.key("job:bad"), "text")
    system.clock.advance(9)
    assert system.ledger.vitals().queues["sdxl_queue"].oldest_s == 9


def test_the_outbox_lag_is_that_of_the_most_overdue_callback(system: DamagedLedger) -> None:
    """One that waits for its next try is not overdue."""
    system.claim("a")
    system.clock.advance(30)
    vitals = system.ledger.vitals()
    assert (vitals.outbox_lag_s, vitals.pending_callbacks) == (30, 1)
    event = system.ledger.lease_event("a", lease_s=10, token="t")
    assert event is not None
    system.ledger.postpone(event, due_in_s=300, status=503, error="HTTP 503")
    assert system.ledger.vitals().outbox_lag_s == 0


def test_quarantined_jobs_are_counted(system: DamagedLedger) -> None:
    """They wait for a release that can read them."""
    system.add("a")
    system.client.hset(system.key("job:a"), "v", "99")
    system.sweep()
    assert system.ledger.vitals().quarantined == 1
