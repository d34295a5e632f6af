"""Records and documents of other releases in one ledger, as during a rolling upgrade."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import pytest
import redis

from ourvidz import testing
from ourvidz.jobs.job import JOB_VERSION, ImageJob, VideoJob
from ourvidz.jobs.versions import Since
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import RECORD_VERSION
from tests.factories import video_job


class LaterImageJob(ImageJob):
    """An image job of a later release."""

    tint: Annotated[str | None, Since(JOB_VERSION + 1)] = None


class LaterVideoJob(VideoJob):
    """A Wan job of a later release."""

    tint: Annotated[str | None, Since(JOB_VERSION + 1)] = None


def later_job(image_job: Callable[..., ImageJob], **fields: object) -> LaterImageJob:
    return LaterImageJob.model_validate(image_job().model_dump() | fields)


def test_a_record_has_the_lowest_version_that_can_handle_it(ledger: Ledger, image_job) -> None:
    """Older releases refuse records of a higher version than theirs, and the job would wait for others."""
    assert ledger.register(later_job(image_job), priority=6).record.version == 1
    new = later_job(image_job, id="new", tint="blue")
    assert ledger.register(new, priority=6).record.version == RECORD_VERSION


def test_a_newer_document_costs_no_attempt_and_waits_for_a_newer_worker(
    ledger: Ledger, clock, image_job
) -> None:
    """The worker that cannot read it must not spin either: the sweep publishes the job again later."""
    fence = ledger.register(later_job(image_job, tint="blue"), priority=6).record.fence
    ledger.mark_published("job-1", 1)
    assert ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="t1") is None
    record = ledger.get("job-1")
    assert record is not None
    assert (record.status, record.attempt, record.fence, record.failures) == ("queued", 0, fence, {})
    assert record.published_at is None
    assert clock.time + 5 <= record.due_at <= clock.time + 30
    assert ledger.next_event("job-1") is None
    assert ledger.expired() == []
    # The sweep can still end it: its record is readable.
    ledger.request_cancel("job-1")


def test_a_newer_worker_claims_what_an_older_one_left(
    ledger: Ledger, clock, image_job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first attempt is the first that counts."""
    ledger.register(later_job(image_job, tint="blue"), priority=6)
    assert ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="t1") is None
    clock.advance(30)
    for module in ("ourvidz.records.calls", "ourvidz.jobs.job"):
        monkeypatch.setattr(f"{module}.JOB_VERSION", JOB_VERSION + 1)
    claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="t2")
    assert claim is not None
    assert claim.record.attempt == 1


def test_a_newer_document_is_not_enhanced(ledger: Ledger) -> None:
    """Its enhancement is left to a newer chat worker, else skipped in time."""
    job = LaterVideoJob.model_validate(video_job(enhance_prompt=True).model_dump() | {"tint": "blue"})
    ledger.register(job, priority=6)
    assert ledger.begin_enhancement("job-1", 1, lease_s=10, token="t1") is None


def test_a_record_of_the_first_release_answers_a_resubmission(make_ledger, image_job) -> None:
    """It has the fingerprint of the whole job only."""
    with testing.key_prefix() as prefix, redis.Redis.from_url(testing.redis_url()) as client:
        ledger = Ledger(testing.redis_url(), prefix=prefix)
        ledger.register(image_job(), priority=6)
        client.hdel(f"{prefix}job:job-1", "request")
        assert ledger.register(image_job(), priority=6).same
        assert not ledger.register(image_job(steps=16), priority=6).same
        ledger.close()
