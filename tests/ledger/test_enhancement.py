"""Prompt enhancement of a queued job: lease, result, and skipping."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ourvidz.errors import OutOfMemory
from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim, Enhancement, Verdict
from ourvidz.ledger.store import Ledger

WORDS = {"prompt": "a kite over dunes, soft light", "source": "tiny-qwen"}
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


@pytest.fixture
def wanting(ledger: Ledger) -> Ledger:
    """The ledger, with one published job `job-1` whose prompt is to be enhanced."""
    ledger.register(video_job(), priority=6)
    ledger.mark_published("job-1", 1)
    return ledger


def video_job(**changes: object) -> VideoJob:
    given: dict[str, object] = {
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
    return VideoJob.model_validate(given | changes)


def begun(ledger: Ledger, token: str = "e1", run: int = 1) -> Enhancement:
    """An enhancement that must begin."""
    held = ledger.begin_enhancement("job-1", run, lease_s=10, token=token)
    assert held is not None
    return held


def claimed(ledger: Ledger, token: str = "t1", run: int = 1) -> Claim:
    claim = ledger.claim("job-1", run, worker_id="wan@a", lease_s=10, token=token)
    assert claim is not None
    return claim


def states(ledger: Ledger) -> list[tuple[str, str | None]]:
    items = [item for item in ledger.stream("job-1") if item.kind == "state"]
    return [(item.data["status"], item.data["stage"]) for item in items]


class TestBeginning:
    def test_only_a_job_that_asks_for_it_is_enhanced(self, ledger):
        """Every other prompt is run as it was given."""
        ledger.register(video_job(enhance_prompt=False), priority=6)
        assert ledger.get("job-1").enhancement is None
        assert ledger.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None
        assert ledger.skip_enhancement("job-1", run=1, reason="too late") is False

    def test_a_job_that_is_being_enhanced_stays_queued_and_shows_it(self, wanting):
        """A caller sees what it waits for; no attempt has begun and nobody was called back."""
        held = begun(wanting)
        record = wanting.get("job-1")
        assert held.job == video_job()
        assert held.record == record
        assert (record.status, record.stage, record.enhancement) == ("queued", "enhancing", "wanted")
        assert (record.attempt, record.fence, record.claimed_at) == (0, 0, None)
        assert wanting.queue_depth("wan_queue") == 1
        assert wanting.next_event("job-1") is None
        assert states(wanting) == [("queued", None), ("queued", "enhancing")]

    def test_one_of_many_at_once_begins(self, wanting):
        """Duplicate messages start one enhancement."""

        def begin(n: int) -> object:
            return wanting.begin_enhancement("job-1", 1, lease_s=10, token=f"e{n}")

        with ThreadPoolExecutor(8) as threads:
            assert len([held for held in threads.map(begin, range(16)) if held]) == 1

    def test_the_same_token_begins_again(self, wanting):
        """The answer to the first call may have been lost; the stream tells of it once."""
        assert begun(wanting) == begun(wanting)
        assert states(wanting) == [("queued", None), ("queued", "enhancing")]

    def test_after_the_lease_another_worker_may_begin(self, wanting, clock):
        """An expired enhancement lease can be taken over; its former holder gets `lost`."""
        dead = begun(wanting)
        clock.pass_s(9)
        assert wanting.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None
        clock.pass_s(1)
        begun(wanting, "e2")
        assert wanting.renew_enhancement(dead, lease_s=10) is Verdict.LOST
        assert wanting.end_enhancement(dead, result=WORDS) is False
        assert wanting.get("job-1").enhancement_result is None

    def test_nothing_begins_for_another_run_a_cancelled_or_a_running_job(self, wanting):
        """Late messages must not hold anything up."""
        assert wanting.begin_enhancement("nobody", 1, lease_s=10, token="e1") is None
        assert wanting.begin_enhancement("job-1", 2, lease_s=10, token="e1") is None
        claimed(wanting)
        assert wanting.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None

    def test_a_job_that_is_to_be_cancelled_is_not_enhanced(self, wanting):
        """The enhancement of a cancelled job is not started."""
        wanting.request_cancel("job-1")
        assert wanting.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None


class TestKeeping:
    def test_a_kept_lease_lasts(self, wanting, clock):
        """A slow model is not a dead worker."""
        held = begun(wanting)
        clock.pass_s(8)
        assert wanting.renew_enhancement(held, lease_s=10) is Verdict.CONTINUE
        clock.pass_s(8)
        assert wanting.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None

    def test_a_lease_that_nobody_took_can_be_kept_after_its_end(self, wanting, clock):
        """Loading the model may take longer than a lease."""
        held = begun(wanting)
        clock.pass_s(30)
        assert wanting.renew_enhancement(held, lease_s=10) is Verdict.CONTINUE
        assert wanting.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None

    def test_it_hears_of_a_cancel_and_then_of_the_end(self, wanting):
        """No token more than needed is spent on a job that nobody wants."""
        held = begun(wanting)
        wanting.request_cancel("job-1")
        assert wanting.renew_enhancement(held, lease_s=10) is Verdict.CANCEL
        wanting.end("job-1", run=1, fence=0, outcome=Outcome(status="cancelled"))
        assert wanting.renew_enhancement(held, lease_s=10) is Verdict.LOST
        assert wanting.end_enhancement(held, result=WORDS) is False
        record = wanting.get("job-1")
        assert (record.status, record.stage, record.attempt) == ("cancelled", None, 0)

    def test_a_claim_ends_it(self, wanting):
        """Once the generation is claimed, a late result is ignored."""
        held = begun(wanting)
        assert claimed(wanting).record.enhancement_result is None
        assert wanting.renew_enhancement(held, lease_s=10) is Verdict.LOST
        assert wanting.end_enhancement(held, result=WORDS) is False


class TestEnding:
    def test_the_result_is_returned_by_the_claim(self, wanting, clock):
        """The text goes through the ledger, not through a message."""
        held = begun(wanting)
        clock.pass_s(3)
        assert wanting.end_enhancement(held, result=WORDS)
        record = wanting.get("job-1")
        assert (record.status, record.stage, record.enhancement) == ("queued", None, "over")
        assert (record.published_at, record.publishes) == (clock.time, 1)
        assert states(wanting)[-1] == ("queued", None)
        assert claimed(wanting).record.enhancement_result == WORDS

    def test_the_same_end_twice_is_one(self, wanting):
        """Repeating the call is idempotent, also after the generation has been claimed."""
        held = begun(wanting)
        assert wanting.end_enhancement(held, result=WORDS)
        assert wanting.end_enhancement(held, result=WORDS)
        claimed(wanting)
        assert wanting.end_enhancement(held, result=WORDS)
        assert wanting.end_enhancement(held, result={"prompt": "other words"}) is False
        assert wanting.get("job-1").enhancement_result == WORDS

    def test_every_attempt_gets_the_same_result(self, wanting):
        """A second attempt writes the same files, so it needs the same prompt."""
        wanting.end_enhancement(begun(wanting), result=WORDS)
        wanting.release(claimed(wanting), code="OOM_ERROR", due_in_s=0)
        again = claimed(wanting, "t2")
        assert (again.record.attempt, again.record.enhancement_result) == (2, WORDS)

    def test_after_an_attempt_without_a_result_no_attempt_has_one(self, wanting):
        """The same holds for the prompt as it was sent."""
        wanting.release(claimed(wanting), code="OOM_ERROR", due_in_s=0)
        assert wanting.begin_enhancement("job-1", 1, lease_s=10, token="e1") is None
        assert wanting.get("job-1").enhancement == "over"

    def test_the_next_run_is_enhanced_again(self, wanting):
        """What an operator's retry is for may be a better answer."""
        wanting.end_enhancement(begun(wanting), result=WORDS)
        claim = claimed(wanting)
        wanting.end("job-1", run=1, fence=claim.fence, outcome=FAILED)
        record = wanting.reopen("job-1", priority=6)
        assert (record.enhancement, record.enhancement_result) == ("wanted", None)
        assert begun(wanting, "e2", run=2).run == 2


class TestGivingUp:
    def test_the_reason_waits_for_the_claim(self, wanting):
        """The caller is told why the prompt was used as it was sent."""
        held = begun(wanting)
        assert wanting.skip_enhancement("job-1", run=1, reason="too late")
        assert wanting.skip_enhancement("job-1", run=1, reason="too late")
        assert wanting.skip_enhancement("job-1", run=1, reason="another") is False
        assert wanting.renew_enhancement(held, lease_s=10) is Verdict.LOST
        assert wanting.end_enhancement(held, result=WORDS) is False
        record = wanting.get("job-1")
        assert (record.status, record.stage, record.enhancement) == ("queued", None, "over")
        assert claimed(wanting).record.enhancement_result == {"reason": "too late"}

    def test_a_recorded_result_is_not_skipped(self, wanting):
        """Skipping after the result was recorded changes nothing."""
        wanting.end_enhancement(begun(wanting), result=WORDS)
        assert wanting.skip_enhancement("job-1", run=1, reason="too late") is False
        assert wanting.get("job-1").enhancement_result == WORDS

    def test_giving_up_before_anybody_began_tells_the_stream_nothing(self, wanting):
        """Nothing has changed for a reader."""
        wanting.skip_enhancement("job-1", run=1, reason="nobody")
        assert states(wanting) == [("queued", None)]


def test_a_deleted_job_leaves_no_enhancement_behind(wanting) -> None:
    """Deleting a job also deletes its enhancement result."""
    wanting.end_enhancement(begun(wanting), result=WORDS)
    wanting.end("job-1", run=1, fence=0, outcome=Outcome(status="cancelled"))
    event = wanting.lease_event("job-1", lease_s=10, token="d")
    wanting.mark_delivered(event, status=200)
    wanting.delete("job-1")
    assert wanting.register(video_job(), priority=6).record.enhancement_result is None
