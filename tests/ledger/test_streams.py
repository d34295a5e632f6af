"""Reading the stream of a job."""

from __future__ import annotations

import pytest

from ourvidz.errors import InvalidParameters, OutOfMemory
from ourvidz.jobs.outcome import Outcome

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
