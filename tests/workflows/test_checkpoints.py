"""Checkpoints of a job in storage: when one is due, and which of several attempts' is found."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import StorageError
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim
from ourvidz.storage.keys import CHECKPOINTS, checkpoint_key
from ourvidz.storage.local import LocalStore
from ourvidz.workflows.checkpoints import JobCheckpoints
from ourvidz.workflows.run import FenceLost, LeasedRun
from tests.factories import ManualClock, image_job


@pytest.fixture
def ledger(make_ledger: Callable[..., Any]) -> Ledger:
    ledger: Ledger = make_ledger()
    ledger.register(image_job("a"), priority=6)
    return ledger


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def claim(ledger: Ledger, token: str) -> Claim:
    """Claim the job for another attempt; the one before is lost."""
    record = ledger.get("a")
    assert record is not None
    if record.status == "processing":
        ledger.rescue(record)
    claimed = ledger.claim("a", 1, worker_id="w", lease_s=10, token=token)
    assert claimed is not None
    return claimed


def save(checkpoints: JobCheckpoints, data: bytes) -> None:
    """Save a checkpoint and wait until it is stored."""
    checkpoints.save(lambda: data)
    checkpoints.close(ended=False)


def attempt(claim: Claim, store: LocalStore) -> JobCheckpoints:
    return JobCheckpoints(claim, store, interval_s=5)


def test_two_checkpoints_are_at_most_the_interval_apart(ledger: Ledger, store: LocalStore) -> None:
    """So a killed worker costs at most five seconds of work: one is saved before the step that would make it
    more."""
    clock = ManualClock()
    checkpoints = JobCheckpoints(claim(ledger, "t"), store, interval_s=5, clock=clock)
    assert list(checkpoints.stored()) == []
    saved_after = []
    for step in range(1, 14):
        clock.advance(2)
        if checkpoints.is_due():
            saved_after.append(step)
            checkpoints.save(lambda: b"state")
            checkpoints._writing.result()  # type: ignore[union-attr]
    checkpoints.close(ended=False)
    assert saved_after == [2, 4, 6, 8, 10, 12]


def test_while_the_worker_drains_every_step_is_saved(ledger: Ledger, store: LocalStore) -> None:
    """The job may be handed back at any time, and nobody waits for a checkpoint then."""
    draining = threading.Event()
    checkpoints = JobCheckpoints(
        claim(ledger, "t"), store, interval_s=5, is_draining=draining.is_set, clock=ManualClock()
    )
    assert not checkpoints.is_due()
    draining.set()
    assert checkpoints.is_due()


def test_denoising_does_not_wait_for_a_checkpoint_that_is_written(ledger: Ledger, store: LocalStore) -> None:
    """A slow disk costs checkpoints, not time."""
    written = threading.Event()
    checkpoints = JobCheckpoints(claim(ledger, "t"), store, interval_s=0)

    def encode() -> bytes:
        assert written.wait(10)
        return b"state"

    checkpoints.save(encode)
    assert not checkpoints.is_due()
    written.set()
    checkpoints.close(ended=False)
    assert checkpoints.is_due()


def test_the_next_attempt_finds_the_newest_checkpoint_first(ledger: Ledger, store: LocalStore) -> None:
    """Each attempt has its own; the first one that an attempt saves replaces those of earlier ones."""
    first, second = claim(ledger, "t"), claim(ledger, "u")
    save(attempt(first, store), b"one")
    assert list(attempt(second, store).stored()) == [b"one"]
    save(attempt(second, store), b"two")
    assert list(attempt(claim(ledger, "v"), store).stored()) == [b"two"]


def test_an_attempt_that_lost_its_job_does_not_replace_the_checkpoint_of_the_present_one(
    ledger: Ledger, store: LocalStore
) -> None:
    """A frozen worker wakes up and saves: its checkpoint comes second, and it removes no other."""
    stale = attempt(claim(ledger, "t"), store)
    save(attempt(claim(ledger, "u"), store), b"present")
    save(stale, b"stale")
    assert list(attempt(claim(ledger, "v"), store).stored()) == [b"present", b"stale"]


def test_a_checkpoint_that_cannot_be_saved_or_read_is_left_out(
    ledger: Ledger, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not end a job that needs no checkpoint."""
    checkpoints = attempt(claim(ledger, "t"), store)
    save(checkpoints, b"state")

    def fail(*_: Any, **__: Any) -> Any:
        raise StorageError("the storage is away")

    later = attempt(claim(ledger, "u"), store)
    for name in ("put", "get", "delete_folder"):
        monkeypatch.setattr(store, name, fail)
    assert list(later.stored()) == []
    save(later, b"state")
    later.close(ended=True)
    monkeypatch.setattr(store, "folders", fail)
    assert list(later.stored()) == []
    later.close(ended=True)


def test_the_commit_removes_all_checkpoints_of_the_job(ledger: Ledger, store: LocalStore) -> None:
    """They show what the job shows, and serve nobody any more."""
    save(attempt(claim(ledger, "t"), store), b"one")
    claimed = claim(ledger, "u")
    with LeasedRun(claimed, ledger, lease_s=10, limit_s=100, checkpoints=attempt(claimed, store)) as run:
        assert run.checkpoints is not None
        run.checkpoints.save(lambda: b"two")
        ledger.end(claimed, outcome=Outcome(status="completed"))
        run.note_commit([])
    assert store.folders(CHECKPOINTS) == []


@pytest.mark.parametrize("error", [FenceLost("a"), KeyError("a")])
def test_an_attempt_that_commits_nothing_leaves_its_checkpoint(
    ledger: Ledger, store: LocalStore, error: Exception
) -> None:
    """To the next attempt: of a retry, or of the worker that has the job now."""
    claimed = claim(ledger, "t")

    def stop() -> None:
        with LeasedRun(claimed, ledger, lease_s=10, limit_s=100, checkpoints=attempt(claimed, store)) as run:
            assert run.checkpoints is not None
            run.checkpoints.save(lambda: b"state")
            raise error

    with pytest.raises(type(error)):
        stop()
    assert store.get(checkpoint_key("a", f"{claimed.fence}.t")) == b"state"
