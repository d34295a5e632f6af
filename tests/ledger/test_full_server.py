"""A server that is out of memory and evicts nothing: jobs that were accepted go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from ourvidz.errors import Cancelled, StorageError, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger import connection
from ourvidz.ledger.store import Ledger
from tests.factories import image_job, worker

W: dict[str, Any] = {"worker_id": "sdxl@host-gpu0", "lease_s": 60}
JOBS = ("end", "cancel", "release", "rescue", "delete")


@pytest.fixture
def full(start_redis: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A ledger with a job for each verb, on a server that has then become full."""
    monkeypatch.setattr(connection, "PATIENCE_S", 0.0)
    server = start_redis("--maxmemory-policy", "noeviction")
    ledger = Ledger(server.url)
    ledger.heartbeat(worker())
    for job_id in JOBS:
        ledger.register(image_job(job_id), priority=6)
    with redis.Redis.from_url(server.url) as client:
        client.set("x", b"x" * (4 << 20))
        client.config_set("maxmemory", 2 << 20)
    yield ledger
    ledger.close()


def test_a_full_server_refuses_new_jobs(full: Ledger) -> None:
    """They are refused earlier, at 80 %; this is what happens when others fill the server."""
    with pytest.raises(WorkerUnavailable, match="takes no writes"):
        full.register(image_job("new"), priority=6)


def test_what_was_accepted_runs_and_ends_on_a_full_server(full: Ledger) -> None:
    """Otherwise it would be full for good: only jobs that end, and are purged, free memory."""
    full.heartbeat(worker())
    full.record_sweep(silence_s=6, lease_s=10)
    full.mark_published("end", 1)
    claims = {}
    for job_id in JOBS:
        claim = full.claim(job_id, 1, **W, token=job_id)
        assert claim is not None
        claims[job_id] = claim
    assert full.renew(claims["end"], lease_s=60)
    assert full.step(claims["end"], progress=50, stage="denoising", items=[("token", {})]) == "continue"
    assert full.end(claims["end"], outcome=Outcome(status="completed"))
    full.request_cancel("cancel")
    assert full.end(claims["cancel"], outcome=Outcome.failure(Cancelled("the job was cancelled")))
    assert full.release(claims["release"], code=StorageError.code, due_in_s=0)
    assert full.rescue(claims["rescue"])
    assert full.raise_priority("rescue", run=1, priority=0)
    for job_id in ("end", "delete"):
        full.end(claims[job_id], outcome=Outcome(status="completed"))
        while event := full.lease_event(job_id, lease_s=10, token="t"):
            full.mark_delivered(event, status=200)
    event = full.lease_event("cancel", lease_s=10, token="t")
    assert event is not None
    full.postpone(event, due_in_s=5, status=500, error="HTTP 500")
    full.delete("delete")
    assert full.purge(older_than_s=-1) == 1
    assert full.get("end") is None
    full.set_draining(W["worker_id"], True)
    full.mark_offline(W["worker_id"])
