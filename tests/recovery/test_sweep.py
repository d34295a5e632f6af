"""The rules of the recovery sweep, under a clock that the test controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import redis

from ourvidz.jobs.job import ChatJob, ImageJob, Message, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Record, Verdict
from ourvidz.recovery.sweep import SweepOptions, SweepReport, recover, sweep

OPTIONS = SweepOptions(
    interval_s=2, lease_s=10, empty_s=15, unclaimed_s=86400, retention_s=7 * 86400, enhance_within_s=60
)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class RecordingBroker:
    """Records the published messages. `messages` is the reported length of every queue."""

    ledger: Ledger
    published: list[str] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    messages: int = 0

    def publish(self, record: Record) -> bool:
        self.published.append(record.job_id)
        self.ledger.mark_published(record.job_id, record.run)
        return True

    def wake(self, queue: str) -> None:
        self.woken.append(queue)

    def waiting_messages(self, queue: str) -> int:
        return self.messages


@dataclass
class SweepSystem:
    clock: Clock
    ledger: Ledger
    broker: RecordingBroker

    def sweep(self, after_s: float = 2.0) -> SweepReport:
        self.clock.now += after_s
        return sweep(self.ledger, self.broker, OPTIONS)

    def pass_time(self, seconds: float) -> None:
        """Let time pass while workers and keepers go on talking to the server."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 2)
            self.ledger.now()

    def keep_sweeping(self, seconds: float) -> None:
        for _ in range(int(seconds / 2)):
            self.sweep()

    def add(self, job_id: str, *, priority: int = 6, published: bool = True) -> Record:
        record = self.ledger.register(job(job_id), priority=priority).record
        if published:
            self.ledger.mark_published(job_id, 1)
        return record

    def claim(self, job_id: str, run: int = 1, *, beside: str | None = None) -> Claim:
        token = f"{job_id}{self.clock.now}"
        claim = self.ledger.claim(job_id, run, worker_id="sdxl@here", lease_s=10, token=token, beside=beside)
        assert claim is not None
        return claim

    def record(self, job_id: str) -> Record:
        record = self.ledger.get(job_id)
        assert record is not None
        return record


def job(job_id: str) -> ImageJob:
    return ImageJob(
        id=job_id,
        type="sdxl_image_fast",
        user_id="u",
        prompt="a hill",
        steps=1,
        guidance_scale=6,
        width=64,
        height=64,
        seed=1,
        expected_time=30,
    )


def enhanced_job(job_id: str) -> VideoJob:
    return VideoJob(
        id=job_id,
        type="image7b_fast_enhanced",
        user_id="u",
        prompt="a hill",
        steps=1,
        guidance_scale=6,
        width=64,
        height=64,
        frames=1,
        seed=1,
        expected_time=30,
        enhance_prompt=True,
    )


def streaming_job(job_id: str) -> ChatJob:
    return ChatJob(
        id=job_id,
        type="chat_conversation",
        expected_time=5,
        messages=(Message(role="user", content="What is a hill?"),),
        max_tokens=9,
        seed=1,
        stream=True,
    )


@pytest.fixture
def system(make_ledger: Callable[..., Ledger]) -> SweepSystem:
    clock = Clock()
    ledger = make_ledger(clock=clock)
    made = SweepSystem(clock, ledger, RecordingBroker(ledger, messages=1))
    made.sweep()
    return made


def test_an_expired_lease_queues_and_publishes_the_job_again(system: SweepSystem) -> None:
    """The loss of a host is detected by leases that are no longer renewed."""
    system.add("a")
    system.claim("a")
    system.keep_sweeping(14)
    assert system.record("a").status == "queued"
    assert system.record("a").failures == {"WORKER_LOST": 1}
    assert system.broker.published == ["a"]


def test_a_job_with_a_renewed_lease_is_not_recovered(system: SweepSystem) -> None:
    """A slow worker that renews its lease keeps the job."""
    system.add("a")
    claim = system.claim("a")
    for _ in range(10):
        system.sweep()
        assert system.ledger.renew(claim, lease_s=10)
    assert system.record("a").status == "processing"


def test_a_job_fails_after_three_lost_workers(system: SweepSystem) -> None:
    """A job that crashes its workers is not repeated endlessly."""
    system.add("a")
    for _ in range(3):
        system.claim("a")
        system.keep_sweeping(14)
    record = system.record("a")
    assert record.status == "failed"
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert record.outcome.error.code == "WORKER_LOST"
    assert system.ledger.due_deliveries() == ["a"]


def test_jobs_that_shared_a_batch_with_a_lost_worker_are_not_charged_and_run_alone(
    system: SweepSystem,
) -> None:
    """Any of them may have been the cause. From then on a job is alone, and a loss is its own."""
    for job_id in ("a", "b", "c"):
        system.add(job_id)
        system.claim(job_id, beside=None if job_id == "a" else "a")
    assert [system.record(job_id).shared for job_id in ("a", "b", "c")] == [True] * 3
    system.keep_sweeping(14)
    for job_id in ("a", "b", "c"):
        record = system.record(job_id)
        assert (record.status, record.attempt, record.failures) == ("queued", 0, {})
        assert (record.alone, record.shared) == (True, False)
    for losses in (1, 2):
        system.claim("b")
        system.keep_sweeping(14)
        assert system.record("b").failures == {"WORKER_LOST": losses}
    system.claim("b")
    system.keep_sweeping(14)
    assert system.record("b").status == "failed"
    assert system.record("a").failures == {}


def test_a_companion_that_shares_the_last_attempt_of_a_job_does_not_fail_it(system: SweepSystem) -> None:
    """A worker of an earlier release lets jobs share a batch that lost a worker before."""
    system.add("a")
    for _ in range(2):
        system.claim("a")
        system.keep_sweeping(14)
    system.add("b")
    system.claim("a")
    system.claim("b", beside="a")
    system.keep_sweeping(14)
    assert (system.record("a").status, system.record("a").failures) == ("queued", {"WORKER_LOST": 2})


def test_a_cancelled_job_of_a_dead_worker_ends_cancelled(system: SweepSystem) -> None:
    """A requested cancellation is carried out instead of another attempt."""
    system.add("a")
    system.claim("a")
    system.ledger.request_cancel("a")
    system.keep_sweeping(14)
    assert system.record("a").status == "cancelled"


def test_a_requested_cancellation_of_a_queued_job_is_carried_out(system: SweepSystem) -> None:
    """The shim may crash between setting the flag and ending the queued job."""
    system.add("a")
    system.ledger.request_cancel("a")
    system.sweep()
    assert system.record("a").status == "cancelled"
    assert system.ledger.due_deliveries() == ["a"]


def test_no_lease_ends_right_after_a_gap(system: SweepSystem) -> None:
    """No lease could be renewed while the server was unreachable, so expired leases prove nothing."""
    system.add("a")
    claim = system.claim("a")
    system.sweep(after_s=60)
    assert system.record("a").status == "processing"
    assert system.ledger.renew(claim, lease_s=10)
    system.keep_sweeping(8)
    assert system.record("a").status == "processing"


def test_a_dead_worker_is_detected_one_lease_after_a_gap(system: SweepSystem) -> None:
    """The gap is counted once only."""
    system.add("a")
    system.claim("a")
    system.sweep(after_s=60)
    system.keep_sweeping(14)
    assert system.record("a").status == "queued"


def test_a_keeper_that_takes_over_rescues_jobs_at_once(system: SweepSystem) -> None:
    """Nobody swept, but the server answered all the time: live workers could renew."""
    system.add("a")
    system.claim("a")
    system.pass_time(12)
    assert system.sweep().recovered == 1


def test_a_checkpoint_can_end_a_sweep(system: SweepSystem) -> None:
    """Another keeper has taken over: this one must not go on."""
    system.add("a")
    system.claim("a")

    def raise_lost() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        sweep(system.ledger, system.broker, OPTIONS, checkpoint=raise_lost)


def test_a_recorded_job_without_a_message_is_published(system: SweepSystem) -> None:
    """The shim may crash between recording and publishing."""
    system.add("a", published=False)
    system.keep_sweeping(4)
    assert system.broker.published == ["a"]


def test_a_new_record_is_not_published_within_the_grace_period(system: SweepSystem) -> None:
    """Otherwise each sweep would duplicate the messages of jobs that are being submitted."""
    system.clock.now += 1.5
    system.add("a", published=False)
    system.sweep(after_s=0.5)
    assert system.broker.published == []


def test_an_overtaken_record_is_published_again_at_doubling_intervals(system: SweepSystem) -> None:
    """A later job of the queue was claimed first, so the message of this one is probably lost."""
    system.add("a")
    system.add("b")
    system.claim("b")
    system.keep_sweeping(2)
    assert system.broker.published == ["a"]
    system.keep_sweeping(2)
    assert system.broker.published == ["a"]
    system.keep_sweeping(4)
    assert system.broker.published.count("a") == 2
    system.keep_sweeping(4)
    assert system.broker.published.count("a") == 2


def test_a_queued_job_is_published_again_when_the_broker_queue_stays_empty(system: SweepSystem) -> None:
    """The only job of a queue is never overtaken, so its lost message shows in the empty queue."""
    system.add("a")
    system.broker.messages = 0
    system.keep_sweeping(12)
    assert system.broker.published == []
    system.keep_sweeping(8)
    assert system.broker.published == ["a"]


def test_a_job_behind_others_in_a_long_queue_is_not_published_again(system: SweepSystem) -> None:
    """While the broker holds messages and nothing overtook the job, its message is not lost."""
    system.add("a")
    system.add("b")
    claim = system.claim("a")
    for _ in range(30):
        system.sweep()
        system.ledger.renew(claim, lease_s=10)
    assert "b" not in system.broker.published


def test_a_sweep_asks_the_server_no_more_often_beside_many_queued_jobs(system: SweepSystem) -> None:
    """It asked up to seven times for each job that had waited for a minute: 1,700 times in a sweep."""

    def requests_of_a_sweep() -> int:
        with redis.Redis.from_url(system.ledger.url) as client:
            before = client.info("stats")["total_reads_processed"]
            system.sweep()
            return int(client.info("stats")["total_reads_processed"] - before)

    system.add("first")
    system.pass_time(100)
    few = requests_of_a_sweep()
    for number in range(100):
        system.add(f"j{number}")
    system.pass_time(100)
    assert requests_of_a_sweep() <= few + 2


def test_a_job_before_its_due_time_is_not_published(system: SweepSystem) -> None:
    """A retry has published its own delayed message."""
    system.add("a")
    claim = system.claim("a")
    assert system.ledger.release(claim, code="OOM_ERROR", due_in_s=30)
    system.broker.messages = 0
    system.keep_sweeping(20)
    assert system.broker.published == []
    system.keep_sweeping(30)
    assert system.broker.published[:1] == ["a"]


def test_a_paused_queue_is_not_published_to(system: SweepSystem) -> None:
    """Workers would discard the messages, since claims are refused."""
    system.add("a", published=False)
    system.ledger.set_paused("sdxl_queue", True)
    system.keep_sweeping(20)
    assert system.broker.published == []
    system.ledger.set_paused("sdxl_queue", False)
    system.sweep()
    assert system.broker.published == ["a"]


def test_the_priority_of_an_overtaken_job_is_raised_once(system: SweepSystem) -> None:
    """Jobs of lower priority run even under constant synchronous requests."""
    system.add("patient")
    for minute in range(4):
        system.add(f"urgent{minute}", priority=0)
        claim = system.claim(f"urgent{minute}")
        system.ledger.end(claim, outcome=Outcome(status="completed"))
        system.keep_sweeping(20)
    assert system.record("patient").priority == 0
    assert system.record("patient").status == "queued"


def test_a_priority_is_raised_however_many_more_urgent_jobs_wait(system: SweepSystem) -> None:
    """A shim takes thousands of synchronous callers, whose jobs start before all others."""
    system.add("patient")
    system.keep_sweeping(62)
    for number in range(260):
        system.add(f"urgent{number}", priority=0)
    system.claim("urgent0")
    system.sweep()
    assert system.record("patient").priority == 0


def test_a_job_unclaimed_for_a_day_fails(system: SweepSystem) -> None:
    """It ends with `WORKER_UNAVAILABLE` and a callback."""
    system.add("a")
    system.sweep(after_s=86_500)
    record = system.record("a")
    assert record.status == "failed"
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert record.outcome.error.code == "WORKER_UNAVAILABLE"
    assert system.ledger.due_deliveries() == ["a"]


def test_ended_jobs_are_purged_after_the_retention_period(system: SweepSystem) -> None:
    """Jobs with a pending callback are kept."""
    for name in ("delivered", "undelivered"):
        system.add(name)
        claim = system.claim(name)
        system.ledger.end(claim, outcome=Outcome(status="completed"))
    for _ in range(2):
        event = system.ledger.lease_event("delivered", lease_s=5, token=f"t{_}")
        assert event is not None
        system.ledger.mark_delivered(event, status=200)
    system.sweep(after_s=8 * 86400)
    assert system.ledger.get("delivered") is None
    assert system.ledger.get("undelivered") is not None


@pytest.mark.parametrize("would_be", ["queued again", "failed after three losses", "cancelled"])
def test_a_lease_renewed_after_it_was_read_as_expired_is_kept(system: SweepSystem, would_be: str) -> None:
    """The script that ends or requeues the job checks the lease itself, so a live worker keeps its job."""
    system.add("a")
    claim = system.claim("a")
    for _ in range(2 if would_be == "failed after three losses" else 0):
        system.ledger.rescue(claim)
        claim = system.claim("a")
    if would_be == "cancelled":
        system.ledger.request_cancel("a")
    system.pass_time(11)
    [expired] = system.ledger.expired()
    assert system.ledger.renew(claim, lease_s=10)
    before = system.record("a")
    assert recover(system.ledger, system.broker, expired) is None
    assert system.record("a") == before
    assert system.ledger.step(claim, progress=50) is not Verdict.LOST
    assert recover(system.ledger, system.broker, expired, worker_is_dead=True) is not None


def test_rescuing_under_an_outdated_fence_changes_nothing(system: SweepSystem) -> None:
    """Two sweeps, or a sweep and the parent process of the worker, may detect the same loss."""
    system.add("a")
    system.claim("a")
    old = system.record("a")
    system.pass_time(11)
    assert recover(system.ledger, system.broker, old) == "recovered"
    assert recover(system.ledger, system.broker, old) is None
    assert system.record("a").failures == {"WORKER_LOST": 1}


def test_a_slow_sweep_does_not_count_as_a_gap(system: SweepSystem) -> None:
    """What counts is that the server answers, to whomever."""
    system.add("a")
    system.claim("a")

    def count_slowly(queue: str) -> int:
        system.pass_time(7)
        return 1

    system.broker.waiting_messages = count_slowly  # type: ignore[method-assign]
    system.keep_sweeping(8)
    assert system.record("a").failures == {"WORKER_LOST": 1}


def test_a_cancelled_job_in_a_paused_queue_ends(system: SweepSystem) -> None:
    """A pause stops claims only; cancelled jobs still end."""
    system.add("a")
    system.ledger.set_paused("sdxl_queue", True)
    system.ledger.request_cancel("a")
    system.sweep()
    assert system.record("a").status == "cancelled"


def test_workers_of_a_queue_with_unclaimed_messages_are_woken_unless_it_is_paused(
    system: SweepSystem,
) -> None:
    """A worker that was reconnecting missed the resume broadcast and does not consume its queue."""
    system.add("a")
    system.broker.messages = 0
    system.ledger.set_paused("sdxl_queue", True)
    system.keep_sweeping(20)
    assert system.broker.woken == []
    system.ledger.set_paused("sdxl_queue", False)
    system.sweep()
    assert system.broker.woken == ["sdxl_queue"]


def test_a_partly_streamed_answer_fails_with_its_worker(system: SweepSystem) -> None:
    """A second attempt would repeat text that the caller has received."""
    system.ledger.register(streaming_job("a"), priority=0)
    system.ledger.step(system.claim("a"), items=[("token", {"text": "A hill"})])
    system.keep_sweeping(14)
    record = system.record("a")
    assert (record.status, record.attempt) == ("failed", 1)
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert record.outcome.error.code == "WORKER_LOST"


def test_an_answer_without_streamed_tokens_is_queued_again(system: SweepSystem) -> None:
    """Its caller only waits longer."""
    system.ledger.register(streaming_job("a"), priority=0)
    system.claim("a")
    system.keep_sweeping(14)
    assert system.record("a").status == "queued"


class TestEnhancedJobs:
    """A job that waits for its enhancement has no message in its generation queue."""

    def register_waiting(self, system: SweepSystem) -> None:
        system.ledger.register(enhanced_job("a"), priority=6)
        system.ledger.mark_published("a", 1)
        system.broker.messages = 0

    def test_a_job_that_waits_for_its_enhancement_is_not_published_again(self, system: SweepSystem) -> None:
        """Neither an empty broker queue nor later claims mean that its message was lost."""
        self.register_waiting(system)
        system.ledger.register(enhanced_job("b").model_copy(update={"enhance_prompt": False}), priority=6)
        system.claim("b")
        system.keep_sweeping(50)
        assert "a" not in system.broker.published
        assert system.record("a").enhancement == "wanted"

    @pytest.mark.parametrize("has_begun", [False, True])
    def test_an_enhancement_is_skipped_after_a_minute(self, system: SweepSystem, has_begun: bool) -> None:
        """A busy, hanging or dead chat worker delays the job by a minute at most."""
        self.register_waiting(system)
        if has_begun:
            assert system.ledger.begin_enhancement("a", 1, lease_s=10, token="e")
        system.keep_sweeping(58)
        assert system.broker.published == []
        system.sweep()
        assert system.broker.published == ["a"]
        record = system.record("a")
        assert (record.enhancement, record.stage) == ("over", None)
        assert record.enhancement_result is not None
        assert "too long" in record.enhancement_result["reason"]

    def test_a_job_with_a_skipped_enhancement_is_published_again_when_its_message_is_lost(
        self, system: SweepSystem
    ) -> None:
        """After the enhancement the job has a message in its generation queue."""
        self.register_waiting(system)
        system.keep_sweeping(60)
        system.keep_sweeping(10)
        assert system.broker.published[:2] == ["a", "a"]

    def test_the_time_of_the_enhancement_does_not_count_as_time_in_the_queue(
        self, system: SweepSystem
    ) -> None:
        """The generation message was published when the enhancement ended."""
        self.register_waiting(system)
        system.broker.messages = 1
        enhancement = system.ledger.begin_enhancement("a", 1, lease_s=10, token="e")
        assert enhancement is not None
        system.keep_sweeping(40)
        assert system.ledger.end_enhancement(enhancement, result={"prompt": "a green hill"})
        system.keep_sweeping(30)
        assert system.broker.published == []

    def test_an_enhanced_job_without_a_message_is_published(self, system: SweepSystem) -> None:
        """The shim may crash before it publishes the enhancement message."""
        system.ledger.register(enhanced_job("a"), priority=6)
        system.keep_sweeping(4)
        assert system.broker.published == ["a"]
        assert system.record("a").enhancement == "wanted"

    def test_a_cancelled_job_under_enhancement_ends(self, system: SweepSystem) -> None:
        """Also if the shim crashed between setting the flag and ending the job."""
        self.register_waiting(system)
        system.ledger.begin_enhancement("a", 1, lease_s=10, token="e")
        system.ledger.request_cancel("a")
        system.sweep()
        assert system.record("a").status == "cancelled"

    def test_enhancements_of_a_paused_queue_are_not_skipped(self, system: SweepSystem) -> None:
        """The generation could not start before the queue is resumed."""
        self.register_waiting(system)
        system.ledger.set_paused("wan_queue", True)
        system.keep_sweeping(90)
        assert system.record("a").enhancement == "wanted"
        system.ledger.set_paused("wan_queue", False)
        system.sweep()
        assert system.broker.published == ["a"]
