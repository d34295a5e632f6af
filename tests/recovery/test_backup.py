"""A restore from a snapshot, as the guide describes it: what happens to the jobs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.recovery.check import Messages, check_ledger
from tests.factories import image_job

DONE = Outcome(status="completed")
OPTIONS = ("--appendonly", "yes", "--appendfsync", "always")


class NoMessages:
    """A broker whose messages were lost."""

    def publish(self, record: Any) -> bool:
        return True

    def messages(self, queue: str) -> Messages:
        return Messages(frozenset(), 0)


def claim(ledger: Ledger, job_id: str) -> Any:
    claimed = ledger.claim(job_id, 1, worker_id="w", lease_s=60, token=f"{job_id}{time.monotonic()}")
    assert claimed is not None
    return claimed


def deliver(ledger: Ledger, job_id: str) -> list[str]:
    """Deliver what is due of a job; return the ids of the events."""
    ids = []
    while event := ledger.lease_event(job_id, lease_s=5, token=f"{job_id}{len(ids)}{time.monotonic()}"):
        ids.append(event.event_id)
        ledger.mark_delivered(event, status=200)
    return ids


def snapshot(url: str, target: Path) -> None:
    """Save what the server holds to a file."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.save()
        shutil.copy(Path(client.config_get("dir")["dir"]) / "dump.rdb", target)


def restored(start_redis: Callable[..., Any], dump: Path, folder: Path) -> str:
    """Start a server with a snapshot, and switch the append-only file on; return its URL."""
    shutil.copy(dump, folder / "dump.rdb")
    server = start_redis("--dir", str(folder), "--dbfilename", "dump.rdb", "--appendonly", "no")
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendonly", "yes")
    return str(server.url)


@pytest.mark.system
def test_after_a_restore_every_job_of_the_snapshot_goes_on_and_nothing_ends_it_from_before(
    start_redis: Callable[..., Any], tmp_path: Path
) -> None:
    """Jobs that ended after the snapshot run again, callbacks keep their ids, and what ran before the loss
    cannot commit."""
    before = start_redis(*OPTIONS)
    ledger = Ledger(before.url)
    for job_id in ("queued", "running", "undelivered", "deleted"):
        ledger.register(image_job(job_id), priority=6)
    running = claim(ledger, "running")
    for job_id in ("undelivered", "deleted"):
        ledger.end(claim(ledger, job_id), outcome=DONE)
    deliver(ledger, "deleted")
    snapshot(before.url, tmp_path / "dump.rdb")

    ledger.end(claim(ledger, "queued"), outcome=DONE)
    delivered = deliver(ledger, "undelivered")
    ledger.delete("deleted")
    ledger.register(image_job("later"), priority=6)
    ledger.close()
    before.kill()

    folder = tmp_path / "restored"
    folder.mkdir()
    ledger = Ledger(restored(start_redis, tmp_path / "dump.rdb", folder))
    assert check_ledger(ledger, NoMessages(), repair=True, sleep=lambda _: None).ok
    again = check_ledger(ledger, NoMessages(), sleep=lambda _: None)
    assert [finding for finding in again.findings if finding.code != "message"] == []

    assert ledger.get("later") is None
    assert ledger.register(image_job("later"), priority=6).created
    record = ledger.get("running")
    assert record is not None
    assert ledger.rescue(record)
    for job_id in ("queued", "running", "later"):
        fresh = claim(ledger, job_id)
        assert fresh.fence > running.fence
        assert not ledger.end(running, outcome=DONE), "an attempt from before the restore ended a job"
        assert ledger.end(fresh, outcome=DONE)
    assert deliver(ledger, "undelivered") == delivered
    deleted = ledger.get("deleted")
    assert deleted is not None
    assert deleted.status == "completed"
    ledger.delete("deleted")
    ledger.close()
