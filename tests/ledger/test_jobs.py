"""The job lifecycle: register, claim, step, release, end, reopen, cancel and delete."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ourvidz.errors import Conflict, JobTimeout, NotFound, OutOfMemory
from ourvidz.jobs.job import ChatJob, ImageJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.record import Claim, Verdict
from ourvidz.ledger.store import Ledger

ImageJobs = Callable[..., ImageJob]
DONE = Outcome(
    status="completed",
    assets=(Asset(type="image", key="workspace-temp/user-1/job-1/0.png", metadata={"width": 1024}),),
    metadata={"generation_time": 15.25},
)
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def claimed(ledger: Ledger, job_id: str = "job-1", run: int = 1, token: str = "t1") -> Claim:
    """A claim that must be won."""
    claim = ledger.claim(job_id, run, worker_id="sdxl@a", lease_s=10, token=token)
    assert claim is not None
    return claim


def ended(ledger: Ledger, claim: Claim, outcome: Outcome = DONE) -> bool:
    return ledger.end(claim.job_id, run=claim.run, fence=claim.fence, outcome=outcome, worker_id="sdxl@a")


class TestTheDoor:
    def test_a_new_job_is_queued_with_everything_at_its_start(self, ledger, clock, image_job):
        """The record holds what the submission decided."""
        job = image_job(callback_url="https://example.org/hook", carried={"video_id": "v:1"})
        admission = ledger.register(job, priority=6)
        record = ledger.get("job-1")
        assert admission.created
        assert admission.same
        assert admission.record == record
        assert (record.status, record.run, record.attempt, record.fence) == ("queued", 1, 0, 0)
        assert (record.type, record.queue, record.user_id) == ("sdxl_image_fast", "sdxl_queue", "user-1")
        assert (record.created_at, record.queued_at, record.due_at) == (clock.time,) * 3
        assert (record.priority, record.progress, record.failures, record.publishes) == (6, 0.0, {}, 0)
        assert (record.published_at, record.outcome, record.cancel_requested) == (None, None, False)
        assert record.callback_url == "https://example.org/hook"
        assert record.callback_metadata == job.callback_metadata()
        assert ledger.job("job-1") == job

    def test_a_repeat_changes_nothing_and_is_known_as_the_same(self, ledger, image_job):
        """An edge function that sends twice must get one job."""
        first = ledger.register(image_job(), priority=6).record
        again = ledger.register(image_job(carried={"video_id": "other"}), priority=0)
        assert (again.created, again.same, again.record) == (False, True, first)
        assert ledger.queue_depth("sdxl_queue") == 1

    def test_other_work_under_a_taken_id_is_not_the_same(self, ledger, image_job):
        """The submission is rejected with 409."""
        ledger.register(image_job(), priority=6)
        other = ledger.register(image_job(prompt="a green square"), priority=6)
        assert (other.created, other.same) == (False, False)
        assert ledger.job("job-1").prompt == "a red circle above a blue lake"

    def test_exactly_one_of_many_registrations_at_once_creates(self, ledger, image_job):
        """Of concurrent submissions of one job exactly one publishes it."""
        job = image_job()
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: ledger.register(job, priority=6).created, range(32)))
        assert answers.count(True) == 1

    def test_a_job_without_a_user_is_kept_without_one(self, ledger, chat_job: Callable[..., ChatJob]):
        """Chat jobs need no user, and no text may stand for the missing one."""
        ledger.register(chat_job(), priority=0)
        assert ledger.get("chat-1").user_id is None

    def test_publishing_is_noted_for_its_run_only(self, ledger, clock, image_job):
        """The sweep doubles its interval with every message that was handed over."""
        ledger.register(image_job(), priority=6)
        clock.pass_s(1)
        ledger.mark_published("job-1", 1)
        ledger.mark_published("job-1", 2)
        ledger.mark_published("gone", 1)
        record = ledger.get("job-1")
        assert (record.published_at, record.publishes) == (clock.time, 1)

    @pytest.mark.parametrize("odd", ["a:b", "all", "user:1", "msg_1", "delivered", "Ünï côde", "x" * 200])
    def test_an_odd_id_is_an_id_like_any_other(self, ledger, image_job, odd):
        """Ids come from callers: none may name a key of something else."""
        ledger.register(image_job("plain", user_id="all"), priority=6)
        ledger.register(image_job(odd, user_id=odd), priority=6)
        ended(ledger, claimed(ledger, odd))
        assert ledger.get(odd).status == "completed"
        assert ledger.get("plain").status == "queued"
        of_user = [record.job_id for record in ledger.page(user_id=odd).records]
        assert of_user == ([odd, "plain"] if odd == "all" else [odd])
        assert [record.job_id for record in ledger.page().records] == [odd, "plain"]


class TestClaiming:
    def test_a_claim_starts_an_attempt_under_a_new_fence(self, ledger, clock, image_job):
        """The attempt counts, the fence guards, the lease runs from now."""
        ledger.register(image_job(), priority=6)
        clock.pass_s(2)
        claim = claimed(ledger)
        record = ledger.get("job-1")
        assert claim.record == record
        assert claim.job == image_job()
        assert (record.status, record.attempt, record.fence, record.worker_id) == (
            "processing",
            1,
            1,
            "sdxl@a",
        )
        assert (record.claimed_at, record.lease_until) == (clock.time, clock.time + 10)
        assert ledger.queue_depth("sdxl_queue") == 0

    def test_only_one_of_many_claims_at_once_is_won(self, ledger, image_job):
        """Duplicate messages must not run a job twice at once."""
        ledger.register(image_job(), priority=6)

        def try_it(n: int) -> Claim | None:
            return ledger.claim("job-1", 1, worker_id=f"w{n}", lease_s=10, token=f"t{n}")

        with ThreadPoolExecutor(16) as threads:
            won = [claim for claim in threads.map(try_it, range(32)) if claim]
        assert len(won) == 1

    def test_the_same_token_gets_the_same_claim_again(self, ledger, image_job):
        """A claim whose answer was lost on the wire must not leave the job to nobody."""
        ledger.register(image_job(), priority=6)
        first, again = claimed(ledger), claimed(ledger)
        assert again == first
        assert ledger.get("job-1").attempt == 1

    def test_a_duplicate_message_loses(self, ledger, image_job):
        """Another token finds the job taken."""
        ledger.register(image_job(), priority=6)
        claimed(ledger)
        assert ledger.claim("job-1", 1, worker_id="sdxl@b", lease_s=10, token="t2") is None

    def test_a_message_of_another_run_or_of_no_job_loses(self, ledger, image_job):
        """A late message of an earlier run does not start the later one."""
        ledger.register(image_job(), priority=6)
        assert ledger.claim("job-1", 2, worker_id="w", lease_s=10, token="t") is None
        assert ledger.claim("nobody", 1, worker_id="w", lease_s=10, token="t") is None

    def test_a_job_that_is_to_be_cancelled_is_not_started(self, ledger, image_job):
        """A queued job that is cancelled never runs."""
        ledger.register(image_job(), priority=6)
        ledger.request_cancel("job-1")
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t") is None

    def test_a_finished_job_is_not_started(self, ledger, image_job):
        """A message redelivered after the commit has nothing to do."""
        ledger.register(image_job(), priority=6)
        ended(ledger, claimed(ledger))
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t1") is None

    def test_a_paused_queue_starts_nothing_and_has_it_published_again(self, ledger, image_job):
        """The message is spent, so the sweep must send another once the queue goes on."""
        ledger.register(image_job(), priority=6)
        ledger.mark_published("job-1", 1)
        ledger.set_paused("sdxl_queue", True)
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t") is None
        assert ledger.get("job-1").published_at is None
        ledger.set_paused("sdxl_queue", False)
        assert ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t") is not None


class TestRunning:
    def test_progress_never_goes_back_within_an_attempt(self, ledger, image_job):
        """A caller's progress bar only moves on; a new attempt starts at zero."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        assert ledger.step(claim, progress=40.5, stage="denoising") is Verdict.CONTINUE
        ledger.step(claim, progress=20)
        assert (ledger.get("job-1").progress, ledger.get("job-1").stage) == (40.5, "denoising")
        ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        assert claimed(ledger, token="t2").record.progress == 0.0

    def test_progress_stays_between_0_and_100(self, ledger, image_job):
        """Whatever a worker computes."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        ledger.step(claim, progress=-3)
        assert ledger.get("job-1").progress == 0.0
        ledger.step(claim, progress=250)
        assert ledger.get("job-1").progress == 100.0

    def test_a_running_job_sees_its_cancellation_at_the_next_step(self, ledger, image_job):
        """It stops before the next denoising step, and stays claimed until it ends."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        assert ledger.request_cancel("job-1").cancel_requested
        assert ledger.step(claim, progress=10) is Verdict.CANCEL
        assert ledger.get("job-1").status == "processing"

    def test_an_attempt_that_lost_its_fence_changes_nothing(self, ledger, image_job):
        """A worker that was thought dead and wakes up must not touch its successor's job."""
        ledger.register(image_job(), priority=6)
        old = claimed(ledger)
        assert ledger.rescue("job-1", fence=old.fence)
        assert not ended(ledger, old)
        claimed(ledger, token="t2")
        before, items = ledger.get("job-1"), ledger.stream("job-1")
        assert ledger.step(old, progress=90, items=[("token", {"text": "x"})]) is Verdict.LOST
        assert not ledger.renew(old, lease_s=99)
        assert not ledger.release(old, code="OOM_ERROR", due_in_s=0)
        assert not ledger.rescue("job-1", fence=old.fence)
        assert not ended(ledger, old)
        assert (ledger.get("job-1"), ledger.stream("job-1")) == (before, items)

    def test_a_renewed_lease_lasts_from_now(self, ledger, clock, image_job):
        """A long generation keeps its job as long as somebody renews."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        clock.pass_s(8)
        assert ledger.renew(claim, lease_s=10)
        clock.pass_s(9)
        assert ledger.expired() == []
        clock.pass_s(1)
        assert [record.job_id for record in ledger.expired()] == ["job-1"]

    def test_a_released_job_waits_for_its_due_time_under_its_old_place(self, ledger, clock, image_job):
        """A retried job keeps its place in the queue."""
        ledger.register(image_job(), priority=6)
        ledger.register(image_job("job-2"), priority=6)
        claim = claimed(ledger)
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
        clock.pass_s(5)
        assert claimed(ledger, token="t2").record.attempt == 2
        assert ledger.counters()["attempts.released.STORAGE_ERROR"] == 1

    @pytest.mark.parametrize(
        ("counted", "attempt", "failures"), [(True, 1, {"WORKER_LOST": 1}), (False, 0, {})]
    )
    def test_a_lost_attempt_counts_unless_it_was_handed_back(
        self, ledger, clock, image_job, counted, attempt, failures
    ):
        """A crash uses up an attempt, a clean shutdown does not."""
        ledger.register(image_job(), priority=6)
        ledger.mark_published("job-1", 1)
        claim = claimed(ledger)
        clock.pass_s(1)
        assert ledger.rescue("job-1", fence=claim.fence, counted=counted)
        record = ledger.get("job-1")
        assert (record.status, record.attempt, record.failures) == ("queued", attempt, failures)
        assert (record.due_at, record.published_at) == (clock.time, None)
        assert ledger.leased_by("sdxl@a") == []

    def test_a_worker_finds_what_it_holds(self, ledger, image_job):
        """A worker that restarts hands back what its former self held."""
        for n in (1, 2, 3):
            ledger.register(image_job(f"job-{n}"), priority=6)
        claimed(ledger, "job-1")
        ledger.claim("job-2", 1, worker_id="sdxl@b", lease_s=10, token="t")
        assert [record.job_id for record in ledger.leased_by("sdxl@a")] == ["job-1"]


class TestEnding:
    def test_a_commit_is_kept_whole(self, ledger, clock, image_job):
        """What the worker found out is what callers will read."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        ledger.step(claim, progress=30, stage="denoising")
        clock.pass_s(16)
        assert ended(ledger, claim)
        record = ledger.get("job-1")
        assert (record.status, record.outcome, record.progress) == ("completed", DONE, 100.0)
        assert (record.finished_at, record.lease_until, record.stage) == (clock.time, None, None)
        assert record.finished
        assert ledger.leased_by("sdxl@a") == []

    def test_a_commit_sent_twice_is_one_commit(self, ledger, image_job):
        """The answer to the first may have been lost."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        assert ended(ledger, claim)
        assert ended(ledger, claim)
        assert len(ledger.list_events("pending")) == 2
        assert ledger.counters()["jobs.sdxl_image_fast.completed"] == 1

    def test_another_ending_under_the_same_fence_comes_too_late(self, ledger, image_job):
        """The parent's hard limit and the child's result may race: one terminal state wins."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        assert ended(ledger, claim, Outcome.failure(JobTimeout("it took too long")))
        assert not ended(ledger, claim)
        assert ledger.get("job-1").status == "failed"

    def test_a_queued_job_can_end_without_a_worker(self, ledger, image_job):
        """Cancelled before it ran, or unclaimed for a day."""
        ledger.register(image_job(), priority=6)
        cancelled = Outcome(status="cancelled")
        assert ledger.end("job-1", run=1, fence=0, outcome=cancelled)
        record = ledger.get("job-1")
        assert (record.status, record.worker_id, record.progress) == ("cancelled", None, 0.0)
        assert ledger.queue_position("job-1") is None

    def test_a_stale_commit_changes_nothing_even_after_a_retry(self, ledger, image_job):
        """An old attempt must not end the new run."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        ended(ledger, claim, FAILED)
        ledger.reopen("job-1", priority=6)
        before = ledger.get("job-1")
        assert not ended(ledger, claim, FAILED)
        assert not ended(ledger, claim)
        assert not ledger.end("job-1", run=2, fence=claim.fence + 1, outcome=DONE)
        assert ledger.get("job-1") == before

    def test_endings_and_generation_time_are_counted(self, ledger, image_job):
        """Operators read rates from the ledger, whichever worker did the work."""
        for n, outcome in enumerate((DONE, DONE, FAILED)):
            ledger.register(image_job(f"j{n}"), priority=6)
            ended(ledger, claimed(ledger, f"j{n}"), outcome)
        counts = ledger.counters()
        assert counts["jobs.sdxl_image_fast.completed"] == 2
        assert counts["jobs.sdxl_image_fast.failed"] == 1
        assert counts["generation_ms.sdxl_image_fast.sum"] == 30500
        assert "assets.unsigned" not in counts

    def test_assets_without_their_manifest_are_counted(self, ledger, image_job):
        """A certificate that has run out is seen on a dashboard, not in the callers' archives."""
        signed = [Asset(type="image", metadata={"c2pa": c2pa}) for c2pa in (True, False, False)]
        for n in range(2):
            ledger.register(image_job(f"j{n}"), priority=6)
            ended(ledger, claimed(ledger, f"j{n}"), Outcome(status="completed", assets=tuple(signed)))
        assert ledger.counters()["assets.unsigned"] == 4


class TestRunningAgain:
    def test_a_failed_job_starts_afresh_under_the_next_run(self, ledger, clock, image_job):
        """An operator's retry is a new submission of the same work; only the fence goes on."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger)
        ledger.request_cancel("job-1")
        ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        fence = ledger.get("job-1").fence
        ledger.end("job-1", run=1, fence=fence, outcome=FAILED)
        clock.pass_s(60)
        record = ledger.reopen("job-1", priority=3)
        assert record == ledger.get("job-1")
        assert (record.status, record.run, record.attempt, record.failures) == ("queued", 2, 0, {})
        assert (record.progress, record.outcome, record.cancel_requested) == (0.0, None, False)
        assert (record.priority, record.publishes, record.published_at) == (3, 0, None)
        assert (record.queued_at, record.finished_at) == (clock.time, None)
        assert record.created_at == clock.time - 60
        assert claimed(ledger, run=2, token="t2").fence > fence

    def test_only_failed_and_cancelled_jobs_can_run_again(self, ledger, image_job):
        """A completed job has its result, a running one is at it."""
        with pytest.raises(NotFound):
            ledger.reopen("nobody", priority=6)
        ledger.register(image_job(), priority=6)
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)
        claim = claimed(ledger)
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)
        ended(ledger, claim)
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)

    def test_a_large_document_goes_as_soon_as_the_job_completed(self, ledger, image_job):
        """A data URI of megabytes must not stay in the store for a week."""
        ledger.register(image_job(prompt="x" * 4000), priority=6)
        ledger.register(image_job("small"), priority=6)
        ended(ledger, claimed(ledger))
        ended(ledger, claimed(ledger, "small"))
        assert ledger.job("job-1") is None
        assert ledger.job("small") is not None

    def test_a_large_document_of_a_failed_job_waits_out_the_retry_window(self, ledger, clock, image_job):
        """For a day the job can run again, then what it asked for is gone."""
        ledger.register(image_job(prompt="x" * 4000), priority=6)
        ended(ledger, claimed(ledger), FAILED)
        clock.pass_s(86399)
        ledger.purge(older_than_s=1e9)
        assert ledger.job("job-1") is not None
        clock.pass_s(1)
        ledger.purge(older_than_s=1e9)
        assert ledger.job("job-1") is None
        with pytest.raises(Conflict):
            ledger.reopen("job-1", priority=6)

    def test_a_large_document_survives_the_window_of_an_earlier_run(self, ledger, clock, image_job):
        """A job that runs again needs its document, however long ago it failed."""
        ledger.register(image_job(prompt="x" * 4000), priority=6)
        ended(ledger, claimed(ledger), FAILED)
        ledger.reopen("job-1", priority=6)
        clock.pass_s(90000)
        ledger.purge(older_than_s=0)
        assert claimed(ledger, run=2).job.prompt == "x" * 4000


class TestCancellingAndDeleting:
    def test_a_finished_job_cannot_be_cancelled(self, ledger, image_job):
        """Its terminal state is final."""
        with pytest.raises(NotFound):
            ledger.request_cancel("job-1")
        ledger.register(image_job(), priority=6)
        ended(ledger, claimed(ledger))
        with pytest.raises(Conflict):
            ledger.request_cancel("job-1")

    def test_a_queued_job_is_only_marked(self, ledger, image_job):
        """The flag alone does not end a queued job; the caller of `cancel` ends it."""
        ledger.register(image_job(), priority=6)
        record = ledger.request_cancel("job-1")
        assert (record.status, record.cancel_requested) == ("queued", True)
        assert record == ledger.get("job-1")

    def test_a_job_is_deleted_with_all_that_belongs_to_it(self, ledger, image_job):
        """Nothing of a deleted job may be found again under its id."""
        ledger.register(image_job(), priority=6)
        ended(ledger, claimed(ledger))
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

    def test_a_job_is_kept_while_it_is_wanted(self, ledger, image_job):
        """A running job, or one with an undelivered terminal callback, cannot be deleted."""
        ledger.register(image_job(), priority=6)
        with pytest.raises(Conflict):
            ledger.delete("job-1")
        claim = claimed(ledger)
        with pytest.raises(Conflict):
            ledger.delete("job-1")
        ended(ledger, claim)
        with pytest.raises(Conflict):
            ledger.delete("job-1")
        assert ledger.get("job-1") is not None
