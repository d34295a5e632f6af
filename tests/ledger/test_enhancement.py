"""Prompt enhancement of a queued job: lease, result, and skipping."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ourvidz.errors import OutOfMemory
from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Enhancement, Verdict

RESULT = {"prompt": "a kite over dunes, soft light", "source": "tiny-qwen"}
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


@pytest.fixture
def job_ledger(ledger: Ledger) -> Ledger:
    """The ledger, with one published job `job-1` whose prompt is to be enhanced."""
    ledger.register(video_job(), priority=6)
    ledger.mark_published("job-1", 1)
    return ledger


def video_job(**changes: object) -> VideoJob:
    defaults: dict[str, object] = {
        "id": "job-1",
        "type": "image7b_fast_enhanced",
        "user_id": "user-1",
        "expected_time": 100.0,
        "prompt": "a kite over dunes",
        "steps": 2,
        "guidance_scale": 6.5,
        "width": 64,
        "height": 64,
        "frames": 1,
        "seed": 7,
        "enhance_prompt": True,
    }
    return VideoJob.model_validate(defaults | changes)


def begin(ledger: Ledger, token: str = "e1", run: int = 1) -> Enhancement:
    """Begin the enhancement of `job-1`. Fails the test if it is refused."""
    enhancement = ledger.begin_enhancement("job-1", run, lease_s=10, token=token)
    assert enhancement is not None
    return enhancement


def claim_job(ledger: Ledger, token: str = "t1", run: int = 1) -> Claim:
    claim = ledger.claim("job-1", run, worker_id="wan@a", lease_s=10, token=token)
    assert claim is not None
    return claim


def states(ledger: Ledger) -> list[tuple[str, str | None]]:
    items = [item for item in ledger.stream("job-1") if item.kind == "state"]
    return [(item.data["status"], item.data["stage"]) for item in items]


class TestBegin:
    def test_only_a_job_that_asks_for_it_is_enhanced(self, ledger):
        """A job without `enhance_prompt` has no enhancement to begin."""
        ledger.register(video_job(enhance_prompt=False), priority=6)
        assert ledger.get("job-1").enhancement is None
        assert ledger.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None
        assert ledger.skip_enhancement("job-1", run=1, reason="too late") is False

    def test_a_job_under_enhancement_stays_queued_with_a_stage(self, job_ledger):
        """The stage is visible to callers; no attempt is counted and no callback is added."""
        enhancement = begin(job_ledger)
        record = job_ledger.get("job-1")
        assert enhancement.job == video_job()
        assert enhancement.record == record
        assert (record.status, record.stage, record.enhancement) == ("queued", "enhancing", "wanted")
        assert (record.attempt, record.token, record.claimed_at) == (0, None, None)
        assert job_ledger.queue_depth("wan_queue") == 1
        assert job_ledger.next_event("job-1") is None
        assert states(job_ledger) == [("queued", None), ("queued", "enhancing")]

    def test_one_of_many_concurrent_calls_begins(self, job_ledger):
        """Duplicate messages start one enhancement only."""

        def begin(n: int) -> object:
            return job_ledger.begin_enhancement("job-1", 1, lease_s=10, token=f"e{n}")

        with ThreadPoolExecutor(8) as threads:
            assert len([enhancement for enhancement in threads.map(begin, range(16)) if enhancement]) == 1

    def test_a_begin_repeated_with_its_token_succeeds(self, job_ledger):
        """The reply to the first call may have been lost; the event stream has one item of it."""
        assert begin(job_ledger) == begin(job_ledger)
        assert states(job_ledger) == [("queued", None), ("queued", "enhancing")]

    def test_another_worker_takes_over_an_expired_enhancement(self, job_ledger, clock):
        """After the lease has expired another token begins; the former holder gets the verdict `lost`."""
        dead = begin(job_ledger)
        clock.advance(9)
        assert job_ledger.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None
        clock.advance(1)
        begin(job_ledger, "e2")
        assert job_ledger.renew_enhancement(dead, lease_s=10) is Verdict.LOST
        assert job_ledger.end_enhancement(dead, result=RESULT) is False
        assert job_ledger.get("job-1").enhancement_result is None

    def test_no_enhancement_begins_for_another_run_or_a_running_job(self, job_ledger):
        """Late messages are discarded."""
        assert job_ledger.begin_enhancement("nobody", 1, lease_s=10, token="e1") is None
        assert job_ledger.begin_enhancement("job-1", 2, lease_s=10, token="e1") is None
        claim_job(job_ledger)
        assert job_ledger.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None

    def test_a_job_with_a_requested_cancellation_is_not_enhanced(self, job_ledger):
        """The enhancement of a cancelled job is not started."""
        job_ledger.request_cancel("job-1")
        assert job_ledger.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None


class TestRenewal:
    def test_a_renewed_lease_does_not_expire(self, job_ledger, clock):
        """A model that needs longer than one lease keeps its enhancement."""
        enhancement = begin(job_ledger)
        clock.advance(8)
        assert job_ledger.renew_enhancement(enhancement, lease_s=10) is Verdict.CONTINUE
        clock.advance(8)
        assert job_ledger.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None

    def test_an_expired_lease_that_nobody_took_over_can_be_renewed(self, job_ledger, clock):
        """Loading the model may take longer than one lease."""
        enhancement = begin(job_ledger)
        clock.advance(30)
        assert job_ledger.renew_enhancement(enhancement, lease_s=10) is Verdict.CONTINUE
        assert job_ledger.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None

    def test_a_renewal_returns_a_cancellation_and_then_the_end(self, job_ledger):
        """The worker stops generating at its next renewal after a cancellation."""
        enhancement = begin(job_ledger)
        job_ledger.request_cancel("job-1")
        assert job_ledger.renew_enhancement(enhancement, lease_s=10) is Verdict.CANCEL
        job_ledger.end(job_ledger.get("job-1"), outcome=Outcome(status="cancelled"))
        assert job_ledger.renew_enhancement(enhancement, lease_s=10) is Verdict.LOST
        assert job_ledger.end_enhancement(enhancement, result=RESULT) is False
        record = job_ledger.get("job-1")
        assert (record.status, record.stage, record.attempt) == ("cancelled", None, 0)

    def test_a_claim_ends_the_enhancement(self, job_ledger):
        """After the job has been claimed, a late result is ignored."""
        enhancement = begin(job_ledger)
        assert claim_job(job_ledger).record.enhancement_result is None
        assert job_ledger.renew_enhancement(enhancement, lease_s=10) is Verdict.LOST
        assert job_ledger.end_enhancement(enhancement, result=RESULT) is False


class TestEnd:
    def test_the_result_is_returned_by_the_claim(self, job_ledger, clock):
        """The enhanced prompt is stored in the ledger, not in a Celery message."""
        enhancement = begin(job_ledger)
        clock.advance(3)
        assert job_ledger.end_enhancement(enhancement, result=RESULT)
        record = job_ledger.get("job-1")
        assert (record.status, record.stage, record.enhancement) == ("queued", None, "over")
        assert (record.published_at, record.publishes) == (clock.time, 1)
        assert states(job_ledger)[-1] == ("queued", None)
        assert claim_job(job_ledger).record.enhancement_result == RESULT

    def test_a_repeated_end_has_one_effect(self, job_ledger):
        """`end_enhancement` is idempotent, also after the job has been claimed."""
        enhancement = begin(job_ledger)
        assert job_ledger.end_enhancement(enhancement, result=RESULT)
        assert job_ledger.end_enhancement(enhancement, result=RESULT)
        claim_job(job_ledger)
        assert job_ledger.end_enhancement(enhancement, result=RESULT)
        assert job_ledger.end_enhancement(enhancement, result={"prompt": "other words"}) is False
        assert job_ledger.get("job-1").enhancement_result == RESULT

    def test_all_attempts_of_a_run_get_the_same_result(self, job_ledger):
        """A second attempt overwrites the files of the first, so it needs the same prompt."""
        job_ledger.end_enhancement(begin(job_ledger), result=RESULT)
        job_ledger.release(claim_job(job_ledger), code="OOM_ERROR", due_in_s=0)
        again = claim_job(job_ledger, "t2")
        assert (again.record.attempt, again.record.enhancement_result) == (2, RESULT)

    def test_no_result_is_accepted_after_an_attempt_without_one(self, job_ledger):
        """If the first attempt used the submitted prompt, so do later attempts."""
        job_ledger.release(claim_job(job_ledger), code="OOM_ERROR", due_in_s=0)
        assert job_ledger.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None
        assert job_ledger.get("job-1").enhancement == "over"

    def test_the_next_run_is_enhanced_again(self, job_ledger):
        """An operator's retry does not reuse the result of the earlier run."""
        job_ledger.end_enhancement(begin(job_ledger), result=RESULT)
        claim = claim_job(job_ledger)
        job_ledger.end(claim, outcome=FAILED)
        record = job_ledger.reopen("job-1", priority=6)
        assert (record.enhancement, record.enhancement_result) == ("wanted", None)
        assert begin(job_ledger, "e2", run=2).run == 2


class TestSkip:
    def test_the_reason_of_a_skip_is_returned_by_the_claim(self, job_ledger):
        """The outcome can state why the submitted prompt was used unchanged."""
        enhancement = begin(job_ledger)
        assert job_ledger.skip_enhancement("job-1", run=1, reason="too late")
        assert job_ledger.skip_enhancement("job-1", run=1, reason="too late")
        assert job_ledger.skip_enhancement("job-1", run=1, reason="another") is False
        assert job_ledger.renew_enhancement(enhancement, lease_s=10) is Verdict.LOST
        assert job_ledger.end_enhancement(enhancement, result=RESULT) is False
        record = job_ledger.get("job-1")
        assert (record.status, record.stage, record.enhancement) == ("queued", None, "over")
        assert claim_job(job_ledger).record.enhancement_result == {"reason": "too late"}

    def test_a_recorded_result_is_not_skipped(self, job_ledger):
        """`skip_enhancement` after `end_enhancement` changes nothing."""
        job_ledger.end_enhancement(begin(job_ledger), result=RESULT)
        assert job_ledger.skip_enhancement("job-1", run=1, reason="too late") is False
        assert job_ledger.get("job-1").enhancement_result == RESULT

    def test_skipping_an_enhancement_that_has_not_begun_adds_no_stream_item(self, job_ledger):
        """The visible state of the job has not changed."""
        job_ledger.skip_enhancement("job-1", run=1, reason="nobody")
        assert states(job_ledger) == [("queued", None)]


def test_deleting_a_job_deletes_its_enhancement(job_ledger) -> None:
    """A later job with the same id does not get the stored result."""
    job_ledger.end_enhancement(begin(job_ledger), result=RESULT)
    job_ledger.end(job_ledger.get("job-1"), outcome=Outcome(status="cancelled"))
    event = job_ledger.lease_event("job-1", lease_s=10, token="d")
    job_ledger.mark_delivered(event, status=200)
    job_ledger.delete("job-1")
    assert job_ledger.register(video_job(), priority=6).record.enhancement_result is None
