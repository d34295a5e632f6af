"""What must not grow without bound, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ourvidz.jobs.outcome import Outcome
from ourvidz.recovery.remains import remove_remains
from tests.recovery.corruption import DamagedLedger, damaged_ledger


@pytest.fixture
def system() -> Iterator[DamagedLedger]:
    with damaged_ledger() as made:
        yield made


def refused(system: DamagedLedger, job_id: str) -> None:
    """End a job whose receiver refuses its callbacks."""
    system.ledger.end(system.claim(job_id), outcome=Outcome(status="completed"))
    while event := system.ledger.lease_event(job_id, lease_s=5, token=f"{job_id}{system.clock()}"):
        system.ledger.dead_letter(event, status=400, error="HTTP 400")
        system.clock.advance(1)


def test_what_a_record_leaves_that_expired_by_itself_is_removed(system: DamagedLedger) -> None:
    """Without a keeper for a day longer than the retention nothing is purged; the server drops the hash."""
    refused(system, "expired")
    refused(system, "kept")
    system.add("queued")
    system.client.delete(system.key("job:expired"))
    checkpoints: list[str] = []
    assert remove_remains(system.ledger, lambda: checkpoints.append("asked")) == 3
    assert system.members("index:all") == ["kept", "queued"]
    assert system.members("index:user:user-1") == ["kept", "queued"]
    assert len(system.members("letters:dead")) == 1
    assert checkpoints
    assert remove_remains(system.ledger) == 0
