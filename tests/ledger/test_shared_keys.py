"""The keys that all jobs share: work goes on when one is damaged or lost, and no number comes again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ourvidz.jobs.outcome import Outcome
from ourvidz.records.record import Record, Verdict
from tests.recovery.corruption import DamagedLedger, damaged_ledger

DONE = Outcome(status="completed")
CANCELLED = Outcome(status="cancelled")
GARBAGE = ["", "many", "-7", "1.5", "nan", "inf", "1e400", "9" * 18, "9" * 30]


@pytest.fixture
def system() -> Iterator[DamagedLedger]:
    """A ledger with a running and a queued job."""
    with damaged_ledger() as made:
        made.claim("running")
        made.add("queued")
        yield made


def damage(system: DamagedLedger, name: str, value: str | None) -> None:
    """Put a text, or a set in place of None, at a key; at the time and the last reading of `clock`."""
    if value is None:
        system.client.delete(system.key(name))
        system.client.sadd(system.key(name), "text")
    elif name == "clock":
        system.client.hset(
            system.key(name), mapping={"now": value, "wall": value, "leases_hold_until": value}
        )
    else:
        system.client.set(system.key(name), value)


def record(system: DamagedLedger, job_id: str) -> Record:
    found = system.ledger.get(job_id)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["clock", "order", "fence", "counters"])
@pytest.mark.parametrize("value", [None, *GARBAGE])
def test_work_goes_on(system: DamagedLedger, name: str, value: str | None) -> None:
    """Every script reads the clock, and every registration and claim draws numbers: one damaged key would
    stop them all."""
    if name == "counters" and value is not None:
        system.client.hset(system.key(name), "jobs.sdxl_image_fast.completed", value)
    else:
        damage(system, name, value)
    system.clock.advance(0.001)
    highest_fence = max(record(system, job_id).fence for job_id in ("running", "queued"))
    highest_order = record(system, "queued").order
    time = system.ledger.now()
    added = system.add("new")
    assert added.fence > highest_fence
    assert added.order > highest_order
    claim = system.ledger.claim("queued", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    assert claim.fence > added.fence
    assert system.ledger.step(claim, progress=50) is Verdict.CONTINUE
    assert system.ledger.renew(claim, lease_s=10)
    assert system.ledger.end(claim, outcome=DONE)
    assert system.sweep(after_s=40).failed == []
    assert system.status("running") == "queued", "the lost worker is found"
    assert 40 <= system.ledger.now() - time < 41


@pytest.mark.parametrize("value", [None, *GARBAGE[:3], *GARBAGE[4:]])
def test_the_time_does_not_go_back(system: DamagedLedger, value: str | None) -> None:
    """The ledger's time is ahead of the server's clock when that was set back; what is stored has those
    times."""
    system.clock.advance(-600)
    claim = system.ledger.claim("queued", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    system.ledger.end(claim, outcome=DONE)
    ended_at = record(system, "queued").finished_at
    assert ended_at is not None
    assert ended_at > system.clock() + 599
    damage(system, "clock", value)
    assert system.ledger.now() >= ended_at
    system.clock.advance(100)
    assert system.ledger.now() == pytest.approx(ended_at + 90, abs=90), "it goes on, slower"


def test_a_live_worker_keeps_its_job_when_the_clock_is_lost(system: DamagedLedger) -> None:
    """How long nobody could renew is not known."""
    system.clock.advance(60)
    damage(system, "clock", None)
    assert system.ledger.expired() == []


def test_a_lost_counter_gives_no_number_again(system: DamagedLedger) -> None:
    """Receivers know events by job, order and run: a new job under the id of a deleted one would be taken for
    that one."""
    used = system.add("gone")
    assert system.ledger.end(used, outcome=CANCELLED)
    system.ledger.begin_deletion("gone", force=True)
    system.ledger.delete("gone")
    system.client.delete(system.key("order"), system.key("fence"))
    system.clock.advance(1)
    again = system.add("gone")
    assert again.order > used.order
    assert again.fence > used.fence


def test_a_failover_that_lost_draws_gives_no_fence_again(system: DamagedLedger) -> None:
    """The replica that took over had not received the last claim; time has gone on meanwhile."""
    before = system.client.get(system.key("fence"))
    lost = system.ledger.claim("queued", 1, worker_id="w", lease_s=10, token="lost")
    assert lost is not None
    system.client.set(system.key("fence"), before)
    system.clock.advance(0.001)
    assert system.add("other").fence > lost.fence
