"""The identity of a claim: it holds over a failover, the deletion of its job, and an upgrade."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import redis

from ourvidz.errors import OutOfMemory
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Verdict
from ourvidz.testing import redis_url
from tests.factories import image_job

DONE = Outcome(status="completed")
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


@dataclass
class StoredLedger:
    """A ledger, and its keys on the server."""

    ledger: Ledger
    client: redis.Redis
    prefix: str

    def register(self) -> None:
        assert self.ledger.register(image_job("a"), priority=6).created

    def claim(self, token: str, *, lease_s: float = 10) -> Claim:
        claim = self.ledger.claim("a", 1, worker_id=f"worker-{token}", lease_s=lease_s, token=token)
        assert claim is not None
        return claim

    @contextmanager
    def lost_at_the_end(self) -> Iterator[None]:
        """Undo what happens inside: a replica that had not received it becomes the primary."""
        before = {name: self.client.dump(name) for name in self.client.scan_iter(f"{self.prefix}*")}
        yield
        self.client.delete(*self.client.scan_iter(f"{self.prefix}*"))
        for name, value in before.items():
            self.client.restore(name, 0, value)


@pytest.fixture
def stored(make_ledger: Callable[..., Ledger]) -> Iterator[StoredLedger]:
    ledger = make_ledger(clock=lambda: 1_000_000.0)
    with redis.Redis.from_url(redis_url()) as client:
        yield StoredLedger(ledger, client, ledger._keys.prefix)


def assert_refused_by_every_verb(ledger: Ledger, claim: Claim) -> None:
    before, items = ledger.get("a"), ledger.stream("a")
    assert ledger.step(claim, progress=90, items=[("token", {"text": "x"})], add_event=True) is Verdict.LOST
    assert not ledger.renew(claim, lease_s=1000)
    assert not ledger.release(claim, code="OOM_ERROR", due_in_s=0)
    assert not ledger.rescue(claim)
    assert not ledger.rescue(claim, counted=False)
    assert not ledger.end(claim, outcome=DONE)
    assert not ledger.end(claim, outcome=FAILED)
    assert (ledger.get("a"), ledger.stream("a")) == (before, items)


def test_of_two_claims_with_one_run_and_fence_only_the_recorded_one_counts(stored: StoredLedger) -> None:
    """A failover that lost a claim lets a second worker claim the job: both believe that they hold it."""
    stored.register()
    with stored.lost_at_the_end():
        lost = stored.claim("first")
    kept = stored.claim("second")
    assert (kept.run, kept.fence) == (lost.run, lost.fence)
    assert_refused_by_every_verb(stored.ledger, lost)
    assert stored.ledger.renew(kept, lease_s=10)
    assert stored.ledger.step(kept, progress=50) is Verdict.CONTINUE
    assert stored.ledger.end(kept, outcome=DONE)
    assert_refused_by_every_verb(stored.ledger, lost)


def test_a_failover_that_lost_a_rescue_leaves_the_job_to_one_worker(stored: StoredLedger) -> None:
    """The record shows the first claim again: its worker goes on, and the one that came after it stops."""
    stored.register()
    first = stored.claim("first")
    with stored.lost_at_the_end():
        assert stored.ledger.rescue(first)
        second = stored.claim("second")
    assert_refused_by_every_verb(stored.ledger, second)
    assert stored.ledger.end(first, outcome=DONE)


def test_the_same_outcome_of_another_claim_is_no_repetition(stored: StoredLedger) -> None:
    """Only the claim that ended the run may report its end twice."""
    stored.register()
    kept = stored.claim("kept")
    other = Claim(kept.job, replace(kept.record, token="other"))
    assert stored.ledger.end(kept, outcome=DONE)
    assert stored.ledger.end(kept, outcome=DONE)
    assert not stored.ledger.end(other, outcome=DONE)


def test_a_job_under_the_id_of_a_deleted_one_gets_new_fences(make_ledger: Callable[..., Ledger]) -> None:
    """A frozen worker of the deleted job wakes up after its id was used again."""
    ledger = make_ledger()
    fences: list[int] = []
    for token in ("first", "second"):
        admission = ledger.register(image_job("a"), priority=6)
        claim = ledger.claim("a", 1, worker_id="w", lease_s=10, token=token)
        assert claim is not None
        fences += [admission.record.fence, claim.fence]
        assert ledger.end(claim, outcome=FAILED)
        for number in range(2):
            event = ledger.lease_event("a", lease_s=30, token=f"{token}{number}")
            assert event is not None
            ledger.mark_delivered(event, status=200)
        ledger.delete("a")
    assert fences == sorted(set(fences))


def test_fences_continue_above_those_of_a_former_release(stored: StoredLedger) -> None:
    """It counted by job: a record may come with a fence above the common counter."""
    stored.register()
    stored.client.hset(f"{stored.prefix}job:a", "fence", 40)
    stored.client.delete(f"{stored.prefix}fence")
    assert stored.ledger.end(stored.ledger.get("a"), outcome=FAILED)  # type: ignore[arg-type]
    event = stored.ledger.lease_event("a", lease_s=30, token="t")
    assert event is not None
    stored.ledger.mark_delivered(event, status=200)
    stored.ledger.delete("a")
    stored.register()
    assert stored.claim("t").fence > 41


@pytest.mark.parametrize("fields", [(), ("token",)])
def test_a_claim_of_a_former_release_can_be_renewed_ended_and_rescued(
    stored: StoredLedger, fields: tuple[str, ...]
) -> None:
    """Its workers finish their jobs during an upgrade: its claims have stored a token, too."""
    stored.register()
    stored.claim("former")
    if fields:
        stored.client.hdel(f"{stored.prefix}job:a", *fields)
    record = stored.ledger.get("a")
    assert record is not None
    claim = Claim(image_job("a"), record)
    assert stored.ledger.renew(claim, lease_s=10)
    assert stored.ledger.step(claim, progress=50) is Verdict.CONTINUE
    assert stored.ledger.rescue(claim)
    again = stored.claim("again")
    assert stored.ledger.end(again, outcome=DONE)
