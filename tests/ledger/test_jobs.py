"""The job lifecycle: register, claim, step, release, end, reopen, cancel and delete."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ourvidz.errors import Conflict, JobTimeout, NotFound, OutOfMemory
from ourvidz.jobs.job import ChatJob, ImageJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.calls import ClaimRequest, Commit, Report
from ourvidz.records.record import Claim, Verdict

ImageJobs = Callable[..., ImageJob]
DONE = Outcome(
    status="completed",
    assets=(Asset(type="image", key="workspace-temp/user-1/job-1/0.png", metadata={"width": 1024}),),
    metadata={"generation_time": 15.25},
)
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def claim_job(ledger: Ledger, job_id: str = "job-1", run: int = 1, token: str = "t1") -> Claim:
    """Claim the job and return the claim. Fails the test if the claim is refused."""
    claim = ledger.claim(job_id, run, worker_id="sdxl@a", lease_s=10, token=token)
    assert claim is not None
    return claim


def end_claim(ledger: Ledger, claim: Claim, outcome: Outcome = DONE) -> bool:
    return ledger.end(claim, outcome=outcome, worker_id="sdxl@a")


class TestRegistration:
    def test_a_new_job_is_queued_with_initial_counters(self, ledger, clock, image_job):
        """The record has the priority of the submission, run 1, a fence, and no attempt or result yet."""
        job = image_job(callback_url="https://example.org/hook", carried={"video_id": "v:1"})
        admission = ledger.register(job, priority=6)
        record = ledger.get("job-1")
        assert admission.created
        assert admission.same
        assert admission.record == record
        assert (record.status, record.run, record.attempt) == ("queued", 1, 0)
        assert record.fence > clock() * 1e6
        assert (record.type, record.queue, record.user_id) == ("sdxl_image_fast", "sdxl_queue", "user-1")
        assert (record.created_at, record.queued_at, record.due_at) == (clock.time,) * 3
        assert (record.priority, record.progress, record.failures, record.publishes) == (6, 0.0, {}, 0)
        assert (record.published_at, record.outcome, record.cancel_requested) == (None, None, False)
        assert record.callback_url == "https://example.org/hook"
        assert record.callback_metadata == job.callback_metadata()
        assert ledger.job("job-1") == job

    def test_a_repeated_registration_returns_the_existing_record(self, ledger, image_job):
        """A client that sends a submission twice gets one job."""
        first = ledger.register(image_job(), priority=6).record
        again = ledger.register(image_job(carried={"video_id": "other"}), priority=0)
        assert (again.created, again.same, again.record) == (False, True, first)
        assert ledger.queue_depth("sdxl_queue") == 1

    def test_a_different_job_with_an_existing_id_is_reported_as_different(self, ledger, image_job):
        """The submission is rejected with 409."""
        ledger.register(image_job(), priority=6)
        other = ledger.register(image_job(prompt="a green square"), priority=6)
        assert (other.created, other.same) == (False, False)
        assert ledger.job("job-1").prompt == "a red circle above a blue lake"

    def test_one_of_many_concurrent_registrations_creates_the_job(self, ledger, image_job):
        """Only the submission that created the record publishes the message."""
        job = image_job()
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: ledger.register(job, priority=6).created, range(32)))
        assert answers.count(True) == 1

    def test_a_job_without_a_user_has_no_user_id(self, ledger, chat_job: Callable[..., ChatJob]):
        """Chat jobs may lack a user: it is read back as None, not as an empty string."""
        ledger.register(chat_job(), priority=0)
        assert ledger.get("chat-1").user_id is None

    def test_publishing_is_recorded_for_the_current_run_only(self, ledger, clock, image_job):
        """The sweep computes its republication interval from the number of published messages."""
        ledger.register(image_job(), priority=6)
        clock.advance(1)
        ledger.mark_published("job-1", 1)
        ledger.mark_published("job-1", 2)
        ledger.mark_published("gone", 1)
        record = ledger.get("job-1")
        assert (record.published_at, record.publishes) == (clock.time, 1)

    @pytest.mark.parametrize("job_id", ["a:b", "all", "user:1", "msg_1", "delivered", "Ünï côde", "x" * 200])
    def test_an_id_with_special_characters_collides_with_no_key(self, ledger, image_job, job_id):
        """Callers choose ids, so no id may produce the key of another job or of an index."""
        ledger.register(image_job("plain", user_id="all"), priority=6)
        ledger.register(image_job(job_id, user_id=job_id), priority=6)
        end_claim(ledger, claim_job(ledger, job_id))
        assert ledger.get(job_id).status == "completed"
        assert ledger.get("plain").status == "queued"
        ids_of_user = [record.job_id for record in ledger.page(user_id=job_id).records]
        assert ids_of_user == ([job_id, "plain"] if job_id == "all" else [job_id])
        assert [record.job_id for record in ledger.page().records] == [job_id, "plain"]


class TestClaims:
    def test_a_claim_starts_an_attempt_under_a_new_fence(self, ledger, clock, image_job):
        """The attempt is incremented, the fence is a higher one, and the lease starts now."""
        before = ledger.register(image_job(), priority=6).record
        clock.advance(2)
        claim = claim_job(ledger)
        record = ledger.get("job-1")
        assert claim.record == record
        assert claim.job == image_job()
        assert (record.status, record.attempt, record.worker_id) == ("processing", 1, "sdxl@a")
        assert record.fence > before.fence
        assert (record.claimed_at, record.lease_until) == (clock.time, clock.time + 10)
        assert ledger.queue_depth("sdxl_queue") == 0

    def test_one_of_many_concurrent_claims_is_won(self, ledger, image_job):
        """Duplicate messages never run a job twice at the same time."""
        ledger.register(image_job(), priority=6)

        def try_claim(n: int) -> Claim | None:
            return ledger.claim("job-1", 1, worker_id=f"w{n}", lease_s=10, token=f"t{n}")

        with ThreadPoolExecutor(16) as threads:
            won = [claim for claim in threads.map(try_claim, range(32)) if claim]
        assert len(won) == 1

    def test_a_claim_repeated_with_its_token_returns_the_same_claim(self, ledger, image_job):
        """A worker whose reply was lost repeats the call and still owns the job."""
        ledger.register(image_job(), priority=6)
        first, again = claim_job(ledger), claim_job(ledger)
        assert again == first
        assert ledger.get("job-1").attempt == 1

    def test_a_duplicate_message_claims_nothing(self, ledger, image_job):
        """A claim with another token is refused while the job is claimed."""
        ledger.register(image_job(), priority=6)
        claim_job(ledger)
        assert ledger.claim("job-1", 1, worker_id="sdxl@b", lease_s=10, token="t2") is None

    def test_a_message_of_another_run_or_of_an_unknown_job_claims_nothing(self, ledger, image_job):
        """A late message of an earlier run does not start the current one."""
        ledger.register(image_job(), priority=6)
        assert ledger.claim("job-1", 2, worker_id="w", lease_s=10, token="t") is None
        assert ledger.claim("nobody", 1, worker_id="w", lease_s=10, token="t") is None

    def test_a_job_with_a_requested_cancellation_is_not_started(self, ledger, image_job):
        """A queued job that is cancelled never runs."""
        ledger.register(image_job(), priority=6)
        ledger.request_cancel("job-1")
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t") is None

    def test_a_finished_job_is_not_started(self, ledger, image_job):
        """A message that is redelivered after the commit is discarded."""
        ledger.register(image_job(), priority=6)
        end_claim(ledger, claim_job(ledger))
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t1") is None

    def test_a_claim_on_a_paused_queue_is_refused_and_the_job_is_published_again(self, ledger, image_job):
        """The refused message is consumed, so the sweep publishes another one after the queue is resumed."""
        ledger.register(image_job(), priority=6)
        ledger.mark_published("job-1", 1)
        ledger.set_paused("sdxl_queue", True)
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t") is None
        assert ledger.get("job-1").published_at is None
        ledger.set_paused("sdxl_queue", False)
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t") is not None

    def test_a_claim_beside_another_marks_both_attempts_as_shared(self, ledger, image_job):
        """Until each of them is queued again or ended; a hand-back changes nothing else."""
        for job_id in ("a", "b", "c"):
            ledger.register(image_job(job_id), priority=6)
        first = claim_job(ledger, "a")
        assert not ledger.get("a").shared
        assert ledger.claim("b", 1, worker_id="sdxl@a", lease_s=10, token="t2", beside="a").record.shared
        assert ledger.get("a").shared
        assert ledger.rescue(first, counted=False)
        handed_back = ledger.get("a")
        assert (handed_back.shared, handed_back.alone, handed_back.failures) == (False, False, {})
        other = ledger.claim("c", 1, worker_id="sdxl@other", lease_s=10, token="t3", beside="b")
        assert other is not None
        again = claim_job(ledger, "a", token="t4")
        assert not again.record.shared
        assert end_claim(ledger, again)

    def test_a_job_whose_leader_has_ended_or_runs_elsewhere_does_not_mark_it(self, ledger, image_job):
        """The leader's message may be long finished when its last companion joins."""
        for job_id in ("a", "b", "c"):
            ledger.register(image_job(job_id), priority=6)
        claim_job(ledger, "a")
        ledger.claim("b", 1, worker_id="sdxl@other", lease_s=10, token="t2", beside="a")
        assert not ledger.get("a").shared
        ledger.end(ledger.get("a"), outcome=DONE)
        ledger.claim("c", 1, worker_id="sdxl@a", lease_s=10, token="t3", beside="a")
        assert not ledger.get("a").shared

    def test_a_retry_may_share_a_batch_again(self, ledger, image_job):
        """An operator retries a job after its cause was removed."""
        ledger.register(image_job(), priority=6)
        assert ledger.rescue(claim_job(ledger))
        assert ledger.get("job-1").alone
        end_claim(ledger, claim_job(ledger, token="t2"), FAILED)
        ledger.reopen("job-1", priority=6)
        assert not ledger.get("job-1").alone


class TestRunningJobs:
    def test_progress_never_decreases_within_an_attempt(self, ledger, image_job):
        """A lower value is ignored; a new attempt starts at zero."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        assert ledger.step(claim, progress=40.5, stage="denoising") is Verdict.CONTINUE
        ledger.step(claim, progress=20)
        assert (ledger.get("job-1").progress, ledger.get("job-1").stage) == (40.5, "denoising")
        ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        assert claim_job(ledger, token="t2").record.progress == 0.0

    def test_progress_stays_between_0_and_100(self, ledger, image_job):
        """Values outside the range are clamped."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        ledger.step(claim, progress=-3)
        assert ledger.get("job-1").progress == 0.0
        ledger.step(claim, progress=250)
        assert ledger.get("job-1").progress == 100.0

    def test_a_running_job_sees_its_cancellation_at_the_next_step(self, ledger, image_job):
        """The step returns the cancel verdict; the job stays claimed until the worker ends it."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        assert ledger.request_cancel("job-1").cancel_requested
        assert ledger.step(claim, progress=10) is Verdict.CANCEL
        assert ledger.get("job-1").status == "processing"

    def test_an_attempt_that_lost_its_fence_changes_nothing(self, ledger, image_job):
        """A worker whose lease expired cannot change the job after another worker claimed it."""
        ledger.register(image_job(), priority=6)
        old = claim_job(ledger)
        assert ledger.rescue(old)
        assert not end_claim(ledger, old)
        claim_job(ledger, token="t2")
        before, items = ledger.get("job-1"), ledger.stream("job-1")
        assert ledger.step(old, progress=90, items=[("token", {"text": "x"})]) is Verdict.LOST
        assert not ledger.renew(old, lease_s=99)
        assert not ledger.release(old, code="OOM_ERROR", due_in_s=0)
        assert not ledger.rescue(old)
        assert not end_claim(ledger, old)
        assert (ledger.get("job-1"), ledger.stream("job-1")) == (before, items)

    def test_a_renewed_lease_expires_a_full_period_after_the_renewal(self, ledger, clock, image_job):
        """A long generation keeps its claim as long as the lease is renewed."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        for _ in range(2):
            clock.advance(4)
            assert ledger.renew(claim, lease_s=10)
        for _ in range(3):
            clock.advance(3)
            assert ledger.expired() == []
        clock.advance(1)
        assert [record.job_id for record in ledger.expired()] == ["job-1"]

    def test_a_released_job_waits_for_its_due_time_and_keeps_its_queue_position(
        self, ledger, clock, image_job
    ):
        """An automatic retry does not send the job to the end of the queue."""
        ledger.register(image_job(), priority=6)
        ledger.register(image_job("job-2"), priority=6)
        claim = claim_job(ledger)
        assert ledger.release(claim, code="STORAGE_ERROR", due_in_s=5)
        record = ledger.get("job-1")
        assert (record.status, record.due_at, record.failures) == (
            "queued",
            clock.time + 5,
            {"STORAGE_ERROR": 1},
        )
        assert (record.attempt, record.worker_id, record.lease_until) == (1, None, None)
        assert record.published_at is None
        assert ledger.queue_position("job-1") == 0
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="early") is None
        clock.advance(5)
        assert claim_job(ledger, token="t2").record.attempt == 2
        assert ledger.counters()["attempts.released.STORAGE_ERROR"] == 1

    @pytest.mark.parametrize(
        ("counted", "attempt", "failures"), [(True, 1, {"WORKER_LOST": 1}), (False, 0, {})]
    )
    def test_a_lost_attempt_counts_unless_the_worker_returned_the_job(
        self, ledger, clock, image_job, counted, attempt, failures
    ):
        """A crash uses up an attempt, a clean shutdown does not."""
        ledger.register(image_job(), priority=6)
        ledger.mark_published("job-1", 1)
        claim = claim_job(ledger)
        clock.advance(1)
        assert ledger.rescue(claim, counted=counted)
        record = ledger.get("job-1")
        assert (record.status, record.attempt, record.failures) == ("queued", attempt, failures)
        assert (record.due_at, record.published_at) == (clock.time, None)
        assert ledger.leased_by("sdxl@a") == []

    def test_claims_are_listed_by_worker(self, ledger, image_job):
        """A worker that restarts returns the jobs that its previous process had claimed."""
        for n in (1, 2, 3):
            ledger.register(image_job(f"job-{n}"), priority=6)
        claim_job(ledger, "job-1")
        ledger.claim("job-2", 1, worker_id="sdxl@b", lease_s=10, token="t")
        assert [record.job_id for record in ledger.leased_by("sdxl@a")] == ["job-1"]


class TestEndedJobs:
    def test_an_outcome_is_stored_completely(self, ledger, clock, image_job):
        """The outcome read back equals the outcome that the worker committed."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        ledger.step(claim, progress=30, stage="denoising")
        clock.advance(16)
        assert end_claim(ledger, claim)
        record = ledger.get("job-1")
        assert (record.status, record.outcome, record.progress) == ("completed", DONE, 100.0)
        assert (record.finished_at, record.lease_until, record.stage) == (clock.time, None, None)
        assert record.finished
        assert ledger.leased_by("sdxl@a") == []

    def test_a_repeated_commit_has_one_effect(self, ledger, image_job):
        """The reply to the first call may have been lost."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        assert end_claim(ledger, claim)
        assert end_claim(ledger, claim)
        assert len(ledger.list_events("pending")) == 2
        assert ledger.counters()["jobs.sdxl_image_fast.completed"] == 1

    def test_a_second_outcome_under_the_same_fence_is_refused(self, ledger, image_job):
        """The hard time limit and the worker's result may race: the first terminal state wins."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        assert end_claim(ledger, claim, Outcome.failure(JobTimeout("it took too long")))
        assert not end_claim(ledger, claim)
        assert ledger.get("job-1").status == "failed"

    def test_a_queued_job_can_end_without_a_worker(self, ledger, image_job):
        """A job can be cancelled before it runs, or fail because no worker claimed it."""
        ledger.register(image_job(), priority=6)
        cancelled = Outcome(status="cancelled")
        assert ledger.end(ledger.get("job-1"), outcome=cancelled)
        record = ledger.get("job-1")
        assert (record.status, record.worker_id, record.progress) == ("cancelled", None, 0.0)
        assert ledger.queue_position("job-1") is None

    def test_a_commit_of_an_earlier_run_changes_nothing(self, ledger, image_job):
        """A worker of run 1 cannot end run 2."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        end_claim(ledger, claim, FAILED)
        ledger.reopen("job-1", priority=6)
        before = ledger.get("job-1")
        assert not end_claim(ledger, claim, FAILED)
        assert not end_claim(ledger, claim)
        assert not ledger.end(replace(before, fence=before.fence + 1), outcome=DONE)
        assert ledger.get("job-1") == before

    def test_outcomes_and_generation_time_are_counted(self, ledger, image_job):
        """The counters in the ledger are totals over all workers."""
        for n, outcome in enumerate((DONE, DONE, FAILED)):
            ledger.register(image_job(f"j{n}"), priority=6)
            end_claim(ledger, claim_job(ledger, f"j{n}"), outcome)
        counts = ledger.counters()
        assert counts["jobs.sdxl_image_fast.completed"] == 2
        assert counts["jobs.sdxl_image_fast.failed"] == 1
        assert counts["generation_ms.sdxl_image_fast.sum"] == 30500
        assert "assets.unsigned" not in counts

    def test_unsigned_assets_are_counted(self, ledger, image_job):
        """Operators notice an expired signing certificate by the count of assets without a C2PA manifest."""
        signed = [Asset(type="image", metadata={"c2pa": c2pa}) for c2pa in (True, False, False)]
        for n in range(2):
            ledger.register(image_job(f"j{n}"), priority=6)
            end_claim(ledger, claim_job(ledger, f"j{n}"), Outcome(status="completed", assets=tuple(signed)))
        assert ledger.counters()["assets.unsigned"] == 4

    def test_hits_and_misses_of_the_embedding_cache_are_counted(self, ledger, image_job):
        """A worker cannot keep them: they are totals over all workers and restarts."""
        for n, found in enumerate(({"hits": 2, "misses": 1}, {"hits": 0, "misses": 3}, "damaged")):
            ledger.register(image_job(f"j{n}"), priority=6)
            outcome = Outcome(status="completed", metadata={"embedding_cache": found})
            end_claim(ledger, claim_job(ledger, f"j{n}"), outcome)
        counts = ledger.counters()
        assert (counts["embedding_cache.hits"], counts["embedding_cache.misses"]) == (2, 4)


class TestRetries:
    def test_a_reopened_job_is_queued_under_the_next_run(self, ledger, clock, image_job):
        """An operator's retry resets the attempts and the progress; only the fence keeps its value."""
        ledger.register(image_job(), priority=6)
        claim = claim_job(ledger)
        ledger.request_cancel("job-1")
        ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        fence = ledger.get("job-1").fence
        ledger.end(ledger.get("job-1"), outcome=FAILED)
        clock.advance(60)
        record = ledger.reopen("job-1", priority=3)
        assert record == ledger.get("job-1")
        assert (record.status, record.run, record.attempt, record.failures) == ("queued", 2, 0, {})
        assert (record.progress, record.outcome, record.cancel_requested) == (0.0, None, False)
        assert (record.priority, record.publishes, record.published_at) == (3, 0, None)
        assert (record.queued_at, record.finished_at) == (clock.time, None)
        assert record.created_at == clock.time - 60
        assert claim_job(ledger, run=2, token="t2").fence > fence

    def test_only_failed_and_cancelled_jobs_can_be_reopened(self, ledger, image_job):
        """A completed job has its result, and a queued or running job is not ended."""
        with pytest.raises(NotFound):
            ledger.reopen("nobody", priority=6)
        ledger.register(image_job(), priority=6)
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)
        claim = claim_job(ledger)
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)
        end_claim(ledger, claim)
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)

    def test_a_large_document_is_deleted_when_the_job_completes(self, ledger, image_job):
        """A job document with a data URI of several MB is not kept for the retention period."""
        ledger.register(image_job(prompt="x" * 4000), priority=6)
        ledger.register(image_job("small"), priority=6)
        end_claim(ledger, claim_job(ledger))
        end_claim(ledger, claim_job(ledger, "small"))
        assert ledger.job("job-1") is None
        assert ledger.job("small") is not None

    def test_a_large_document_of_a_failed_job_is_kept_for_the_retry_window(self, ledger, clock, image_job):
        """The job can be reopened for a day; after that its document is deleted."""
        ledger.register(image_job(prompt="x" * 4000), priority=6)
        end_claim(ledger, claim_job(ledger), FAILED)
        clock.advance(86399)
        ledger.purge(older_than_s=1e9)
        assert ledger.job("job-1") is not None
        clock.advance(1)
        ledger.purge(older_than_s=1e9)
        assert ledger.job("job-1") is None
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)

    def test_a_large_document_is_kept_after_the_retry_window_of_an_earlier_run(
        self, ledger, clock, image_job
    ):
        """A reopened job needs its document, no matter when the earlier run failed."""
        ledger.register(image_job(prompt="x" * 4000), priority=6)
        end_claim(ledger, claim_job(ledger), FAILED)
        ledger.reopen("job-1", priority=6)
        clock.advance(90000)
        ledger.purge(older_than_s=0)
        assert claim_job(ledger, run=2).job.prompt == "x" * 4000


class TestCancellationAndDeletion:
    def test_a_finished_job_cannot_be_cancelled(self, ledger, image_job):
        """Its terminal state is final."""
        with pytest.raises(NotFound):
            ledger.request_cancel("job-1")
        ledger.register(image_job(), priority=6)
        end_claim(ledger, claim_job(ledger))
        with pytest.raises(Conflict):
            ledger.request_cancel("job-1")

    def test_requesting_the_cancellation_of_a_queued_job_only_sets_the_flag(self, ledger, image_job):
        """`request_cancel` does not end a queued job; its caller does."""
        ledger.register(image_job(), priority=6)
        record = ledger.request_cancel("job-1")
        assert (record.status, record.cancel_requested) == ("queued", True)
        assert record == ledger.get("job-1")

    def test_deleting_a_job_deletes_its_events_and_index_entries(self, ledger, image_job):
        """A later job with the same id inherits nothing from the deleted one."""
        ledger.register(image_job(), priority=6)
        end_claim(ledger, claim_job(ledger))
        for _ in range(2):
            event = ledger.lease_event("job-1", lease_s=30, token="d")
            ledger.mark_delivered(event, status=200)
        last = replace(ledger.list_events("delivered")[0])
        assert ledger.delete("job-1").status == "completed"
        assert ledger.get("job-1") is None
        assert ledger.job("job-1") is None
        assert ledger.stream("job-1") == []
        assert ledger.get_event(last.event_id) is None
        assert ledger.list_events("delivered") == []
        assert ledger.page().records == []
        with pytest.raises(NotFound):
            ledger.delete("job-1")

    def test_a_running_job_or_one_with_an_undelivered_callback_is_not_deleted(self, ledger, image_job):
        """`delete` raises a conflict until the job has ended and its terminal callback is settled."""
        ledger.register(image_job(), priority=6)
        with pytest.raises(Conflict):
            ledger.delete("job-1")
        claim = claim_job(ledger)
        with pytest.raises(Conflict):
            ledger.delete("job-1")
        end_claim(ledger, claim)
        with pytest.raises(Conflict):
            ledger.delete("job-1")
        assert ledger.get("job-1") is not None


class TestTogether:
    def test_many_claims_are_answered_in_their_order(self, ledger, image_job):
        """Also on a server that has forgotten its scripts, as after a restart."""
        for name in ("a", "b", "c"):
            ledger.register(image_job(name), priority=6)
        claim_job(ledger, "b", token="other")
        ledger._connection.client.script_flush()
        requests = [ClaimRequest(name, 1, "w", 10, f"token-{name}") for name in ("c", "b", "a")]
        claims = ledger.claims(requests)
        assert [claim and (claim.job_id, claim.job.id, claim.token) for claim in claims] == [
            ("c", "c", "token-c"),
            None,
            ("a", "a", "token-a"),
        ]
        assert ledger.claims(requests) == claims
        assert ledger.get("a").attempt == 1

    def test_reports_that_are_sent_again_change_nothing(self, ledger, image_job):
        """One of several may have failed, and then all are sent again."""
        for name in ("a", "b"):
            ledger.register(image_job(name), priority=6)
        claims = [claim_job(ledger, name, token=name) for name in ("a", "b")]
        reports = [Report(claim, 5.0, items=[("token", {"text": "Once"})]) for claim in claims]
        assert ledger.steps(reports) == ledger.steps(reports) == [Verdict.CONTINUE] * 2
        kinds = [[item.kind for item in ledger.stream(name)] for name in ("a", "b")]
        assert kinds == [["state", "state", "token", "progress"]] * 2

    def test_many_ends_are_answered_in_their_order(self, ledger, image_job):
        """The end of an attempt that lost its job changes nothing."""
        for name in ("a", "b"):
            ledger.register(image_job(name), priority=6)
        claims = [claim_job(ledger, name, token=name) for name in ("a", "b")]
        assert ledger.release(claims[0], code="OOM_ERROR", due_in_s=5)
        assert ledger.ends([Commit(claim, DONE) for claim in claims]) == [False, True]
        assert [ledger.get(name).status for name in ("a", "b")] == ["queued", "completed"]
        assert ledger.claims([]) == ledger.steps([]) == ledger.ends([]) == []
