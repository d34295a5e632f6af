"""Reading the stream of a job."""

from __future__ import annotations

import pytest
import redis

from ourvidz.errors import InvalidParameters, OutOfMemory
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger

DONE = Outcome(status="completed")
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def test_the_stream_lists_the_events_of_a_job_in_order(ledger, image_job):
    """A client that connects late gets the whole history of the job."""
    ledger.register(image_job(), priority=6)
    claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    ledger.step(claim, progress=50, stage="denoising")
    ledger.step(claim, progress=50)
    ledger.step(claim, progress=60, items=[("token", {"text": "ü"}), ("progress", {"step": 3})])
    ledger.end(ledger.get("job-1"), outcome=FAILED)
    assert [(item.kind, item.data) for item in ledger.stream("job-1")] == [
        ("state", {"status": "queued", "run": 1, "attempt": 0, "stage": None}),
        ("state", {"status": "processing", "run": 1, "attempt": 1, "stage": None}),
        ("progress", {"progress": 50.0, "stage": "denoising"}),
        ("token", {"text": "ü"}),
        ("progress", {"progress": 60.0, "stage": "denoising", "step": 3}),
        (
            "done",
            {
                "status": "failed",
                "run": 1,
                "error": {
                    "code": "OOM_ERROR",
                    "message": "there was not enough memory",
                    "retryable": True,
                },
            },
        ),
    ]


def test_a_queued_job_has_its_first_item_before_anything_is_written(ledger, image_job):
    """A stream takes 4 KiB from its first item on, and thousands of jobs may wait."""
    client = ledger._connection.client
    ledger.register(image_job(), priority=6)
    assert not client.exists(ledger._keys.stream("job-1"))
    (queued,) = ledger.stream("job-1")
    assert (queued.kind, queued.data["status"]) == ("state", "queued")
    assert ledger.stream("job-1", after=queued.id) == []
    ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    assert client.exists(ledger._keys.stream("job-1"))
    items = ledger.stream("job-1")
    assert items[0] == queued, "a reader that has it does not get it again"
    assert [item.data["status"] for item in items] == ["queued", "processing"]


def test_a_stream_that_an_earlier_release_began_is_continued(ledger, image_job):
    """It wrote the first item at the registration."""
    ledger.register(image_job(), priority=6)
    first = {"k": "state", "status": "queued", "run": 1, "attempt": 0, "stage": ""}
    ledger._connection.client.xadd(ledger._keys.stream("job-1"), first)
    ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    assert [item.data["status"] for item in ledger.stream("job-1")] == ["queued", "processing"]


@pytest.mark.parametrize("items", [3, 300])
def test_the_end_of_a_stream_changes_no_item_of_it(ledger, image_job, items):
    """A short one is written anew, to take less memory; ids and the place of the next item stay."""
    ledger.register(image_job(), priority=6)
    claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    ledger.step(claim, items=[("token", {"n": n}) for n in range(items)])
    before = ledger.stream("job-1")
    ledger.end(claim, outcome=FAILED)
    after = ledger.stream("job-1")
    assert after[: len(before)] == before
    assert [item.kind for item in after[len(before) :]] == ["done"]
    assert 0 < ledger._connection.client.ttl(ledger._keys.stream("job-1")) <= 3600
    ledger.reopen("job-1", priority=6)
    assert [item.data.get("run") for item in ledger.stream("job-1", after=after[-1].id)] == [2]


def test_a_user_without_the_right_to_restore_ends_jobs_all_the_same(start_redis, image_job):
    """The rights that earlier releases asked for are enough."""
    server = start_redis("--appendonly", "no")
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-restore")
    ledger = Ledger(server.url)
    ledger.register(image_job(), priority=6)
    assert ledger.end(ledger.get("job-1"), outcome=FAILED)
    assert [item.kind for item in ledger.stream("job-1")] == ["state", "done"]
    ledger.close()


def test_a_reader_resumes_after_the_last_item_it_received(ledger, image_job):
    """Resuming with `Last-Event-ID` repeats and skips nothing."""
    ledger.register(image_job(), priority=6)
    ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    ledger.end(ledger.get("job-1"), outcome=DONE)
    items = ledger.stream("job-1")
    assert ledger.stream("job-1", after=items[0].id) == items[1:]
    assert ledger.stream("job-1", limit=2) == items[:2]
    assert ledger.stream("job-1", after=items[-1].id) == []
    with pytest.raises(InvalidParameters):
        ledger.stream("job-1", after="yesterday")


def test_only_the_latest_preview_is_kept(ledger, image_job):
    """Previews are large, and a newer one replaces the older."""
    ledger.register(image_job(), priority=6)
    claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    for n in range(5):
        ledger.step(claim, items=[("preview", {"n": n})])
    previews = [item.data for item in ledger.stream("job-1") if item.kind == "preview"]
    assert previews == [{"n": 4}]


def test_a_stream_is_bounded(ledger, image_job):
    """A long text does not use unlimited memory: the oldest items are trimmed."""
    ledger.register(image_job(), priority=6)
    claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    ledger.step(claim, items=[("token", {"n": n}) for n in range(1500)])
    items = ledger.stream("job-1", limit=5000)
    assert len(items) <= 700
    assert items[-1].data == {"n": 1499}
