"""The rules of the recovery sweep, under a clock that the test controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ourvidz.jobs.job import ChatJob, ImageJob, Message, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim, Record
from ourvidz.ledger.store import Ledger
from ourvidz.ledger.sweep import SweepOptions, SweepReport, recover, sweep

OPTIONS = SweepOptions(
    interval_s=2, lease_s=10, empty_s=15, unclaimed_s=86400, retention_s=7 * 86400, enhance_within_s=60
)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Outlet:
    """Notes what would go to the broker; `messages` is what the broker holds."""

    ledger: Ledger
    published: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    messages: int = 0
    deliveries: int = 0

    def publish(self, record: Record) -> bool:
        self.published.append(record.job_id)
        self.ledger.mark_published(record.job_id, record.run)
        return True

    def deliver(self, job_id: str) -> None:
        self.delivered.append(job_id)

    def wake(self, queue: str) -> None:
        self.woken.append(queue)

    def waiting_messages(self, queue: str) -> int:
        return self.messages

    def deliveries_waiting(self) -> int:
        return self.deliveries


@dataclass
class World:
    clock: Clock
    ledger: Ledger
    outlet: Outlet

    def sweep(self, after_s: float = 2.0) -> SweepReport:
        self.clock.now += after_s
        return sweep(self.ledger, self.outlet, OPTIONS)

    def keep_sweeping(self, seconds: float) -> None:
        for _ in range(int(seconds / 2)):
            self.sweep()

    def add(self, job_id: str, *, priority: int = 6, published: bool = True) -> Record:
        record = self.ledger.register(job(job_id), priority=priority).record
        if published:
            self.ledger.mark_published(job_id, 1)
        return record

    def claim(self, job_id: str, run: int = 1) -> Claim:
        claim = self.ledger.claim(
            job_id, run, worker_id="sdxl@here", lease_s=10, token=f"{job_id}{self.clock.now}"
        )
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
def world(make_ledger: Callable[..., Ledger]) -> World:
    clock = Clock()
    ledger = make_ledger(clock=clock)
    made = World(clock, ledger, Outlet(ledger, messages=1))
    made.sweep()
    return made


def test_an_expired_lease_queues_and_publishes_the_job_again(world: World) -> None:
    """A worker that died with its machine reports nothing: only its silence tells."""
    world.add("a")
    world.claim("a")
    world.keep_sweeping(14)
    assert world.record("a").status == "queued"
    assert world.record("a").failures == {"WORKER_LOST": 1}
    assert world.outlet.published == ["a"]


def test_a_renewed_lease_is_left_alone(world: World) -> None:
    """A slow worker that still renews is not a dead one."""
    world.add("a")
    claim = world.claim("a")
    for _ in range(10):
        world.sweep()
        assert world.ledger.renew(claim, lease_s=10)
    assert world.record("a").status == "processing"


def test_the_third_lost_worker_ends_the_job(world: World) -> None:
    """A job that kills its workers must not go round for ever."""
    world.add("a")
    for _ in range(3):
        world.claim("a")
        world.keep_sweeping(14)
    record = world.record("a")
    assert record.status == "failed"
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert record.outcome.error.code == "WORKER_LOST"
    assert "a" in world.outlet.delivered


def test_a_cancelled_job_of_a_dead_worker_ends_cancelled(world: World) -> None:
    """The caller asked for it; running it again would be waste."""
    world.add("a")
    world.claim("a")
    world.ledger.request_cancel("a")
    world.keep_sweeping(14)
    assert world.record("a").status == "cancelled"


def test_a_cancel_that_was_never_carried_out_is(world: World) -> None:
    """The shim may die between raising the flag and ending a queued job."""
    world.add("a")
    world.ledger.request_cancel("a")
    world.sweep()
    assert world.record("a").status == "cancelled"
    assert "a" in world.outlet.delivered


def test_after_a_gap_leases_are_armed_again_before_they_count(world: World) -> None:
    """While the server was away nobody could renew: the holder of an unchanged fence is still at it."""
    world.add("a")
    claim = world.claim("a")
    report = world.sweep(after_s=60)
    assert report.rearmed == 1
    assert world.record("a").status == "processing"
    assert world.ledger.renew(claim, lease_s=10)
    world.keep_sweeping(8)
    assert world.record("a").status == "processing"


def test_after_a_gap_a_dead_holder_is_found_one_lease_later(world: World) -> None:
    """Arming again must not protect the dead."""
    world.add("a")
    world.claim("a")
    world.sweep(after_s=60)
    world.keep_sweeping(14)
    assert world.record("a").status == "queued"


def test_a_record_that_was_never_published_is(world: World) -> None:
    """The shim may die between recording and publishing."""
    world.add("a", published=False)
    world.keep_sweeping(4)
    assert world.outlet.published == ["a"]


def test_a_fresh_record_is_given_time_to_be_published(world: World) -> None:
    """Else every sweep would double the messages of what is just coming in."""
    world.clock.now += 1.5
    world.add("a", published=False)
    world.sweep(after_s=0.5)
    assert world.outlet.published == []


def test_an_overtaken_record_is_published_again_at_doubling_intervals(world: World) -> None:
    """A later arrival was claimed first: this one's message is most likely gone, but maybe only late."""
    world.add("a")
    world.add("b")
    world.claim("b")
    world.keep_sweeping(2)
    assert world.outlet.published == ["a"]
    world.keep_sweeping(2)
    assert world.outlet.published == ["a"]
    world.keep_sweeping(4)
    assert world.outlet.published.count("a") == 2
    world.keep_sweeping(4)
    assert world.outlet.published.count("a") == 2


def test_a_record_whose_queue_was_empty_for_long_is_published_again(world: World) -> None:
    """The only job of a queue has nobody to be overtaken by."""
    world.add("a")
    world.outlet.messages = 0
    world.keep_sweeping(12)
    assert world.outlet.published == []
    world.keep_sweeping(8)
    assert world.outlet.published == ["a"]


def test_a_record_waiting_behind_others_is_left_alone(world: World) -> None:
    """A long queue is no loss: the broker still holds the messages."""
    world.add("a")
    world.add("b")
    world.claim("a")
    for _ in range(30):
        world.sweep()
        world.ledger.extend_leases(10)
    assert "b" not in world.outlet.published


def test_a_job_waiting_for_its_due_time_is_not_published(world: World) -> None:
    """A retry has its own message with a countdown."""
    world.add("a")
    claim = world.claim("a")
    assert world.ledger.release(claim, code="OOM_ERROR", due_in_s=30)
    world.outlet.messages = 0
    world.keep_sweeping(20)
    assert world.outlet.published == []
    world.keep_sweeping(30)
    assert world.outlet.published[:1] == ["a"]


def test_a_paused_queue_is_not_published_to(world: World) -> None:
    """Messages nobody may claim would only be thrown away."""
    world.add("a", published=False)
    world.ledger.set_paused("sdxl_queue", True)
    world.keep_sweeping(20)
    assert world.outlet.published == []
    world.ledger.set_paused("sdxl_queue", False)
    world.sweep()
    assert world.outlet.published == ["a"]


def test_the_priority_of_an_overtaken_job_is_raised_once(world: World) -> None:
    """Synchronous callers must not starve the queue."""
    world.add("patient")
    for minute in range(4):
        world.add(f"urgent{minute}", priority=0)
        claim = world.claim(f"urgent{minute}")
        world.ledger.end(claim.job_id, run=1, fence=claim.fence, outcome=Outcome(status="completed"))
        world.keep_sweeping(20)
    assert world.record("patient").priority == 0
    assert world.record("patient").status == "queued"


def test_a_job_nobody_takes_for_a_day_fails(world: World) -> None:
    """An unclaimed job fails after a day, with a callback."""
    world.add("a")
    world.sweep(after_s=86_500)
    record = world.record("a")
    assert record.status == "failed"
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert record.outcome.error.code == "WORKER_UNAVAILABLE"
    assert "a" in world.outlet.delivered


def test_due_deliveries_are_dispatched_again(world: World) -> None:
    """A delivery message may get lost like any other."""
    world.add("a")
    world.claim("a")
    world.sweep()
    assert world.outlet.delivered == ["a"]


def test_deliveries_are_not_piled_up_while_the_broker_still_holds_some(world: World) -> None:
    """With the callback worker down, every sweep would add the same messages again."""
    world.add("a")
    world.claim("a")
    world.outlet.deliveries = 5
    world.keep_sweeping(8)
    assert world.outlet.delivered == []


def test_finished_jobs_are_forgotten_after_the_retention(world: World) -> None:
    """The ledger must not grow for ever; a pending callback keeps its job."""
    for name in ("delivered", "undelivered"):
        world.add(name)
        claim = world.claim(name)
        world.ledger.end(name, run=1, fence=claim.fence, outcome=Outcome(status="completed"))
    for _ in range(2):
        event = world.ledger.lease_event("delivered", lease_s=5, token=f"t{_}")
        assert event is not None
        world.ledger.mark_delivered(event, status=200)
    world.sweep(after_s=8 * 86400)
    assert world.ledger.get("delivered") is None
    assert world.ledger.get("undelivered") is not None


def test_recovering_a_fence_that_moved_on_does_nothing(world: World) -> None:
    """Two sweeps, or a sweep and a worker's parent, may find the same loss."""
    world.add("a")
    world.claim("a")
    old = world.record("a")
    assert recover(world.ledger, world.outlet, old) == "recovered"
    assert recover(world.ledger, world.outlet, old) is None
    assert world.record("a").failures == {"WORKER_LOST": 1}


def test_a_slow_sweep_does_not_switch_recovery_off(world: World) -> None:
    """The gap that re-arms leases is time nobody swept, not time a sweep took."""
    world.add("a")
    world.claim("a")
    plain = world.outlet.deliver

    def slowly(job_id: str) -> None:
        world.clock.now += 20
        plain(job_id)

    world.outlet.deliver = slowly  # type: ignore[method-assign]
    world.keep_sweeping(8)
    assert world.record("a").failures == {"WORKER_LOST": 1}


def test_a_cancelled_job_in_a_paused_queue_ends(world: World) -> None:
    """A pause holds back work, not endings."""
    world.add("a")
    world.ledger.set_paused("sdxl_queue", True)
    world.ledger.request_cancel("a")
    world.sweep()
    assert world.record("a").status == "cancelled"


def test_a_starved_queue_wakes_its_workers_unless_it_is_paused(world: World) -> None:
    """The broadcast of a resume may meet a worker that is just reconnecting."""
    world.add("a")
    world.outlet.messages = 0
    world.ledger.set_paused("sdxl_queue", True)
    world.keep_sweeping(20)
    assert world.outlet.woken == []
    world.ledger.set_paused("sdxl_queue", False)
    world.sweep()
    assert world.outlet.woken == ["sdxl_queue"]


def test_a_receiver_that_hangs_does_not_stand_before_the_others_for_ever(world: World) -> None:
    """Of more due rows than one sweep dispatches, every one gets its turn."""
    names = {f"job{number:03}" for number in range(150)}
    for name in sorted(names):
        world.add(name)
        world.claim(name)
    for _ in range(60):
        world.clock.now += 0.012347
        sweep(world.ledger, world.outlet, OPTIONS)
    assert set(world.outlet.delivered) == names


def test_an_answer_that_is_being_read_ends_with_its_worker(world: World) -> None:
    """A second attempt would begin again in the middle of what the caller has before it."""
    world.ledger.register(streaming_job("a"), priority=0)
    world.ledger.step(world.claim("a"), items=[("token", {"text": "A hill"})])
    world.keep_sweeping(14)
    record = world.record("a")
    assert (record.status, record.attempt) == ("failed", 1)
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert record.outcome.error.code == "WORKER_LOST"


def test_an_answer_of_which_nothing_was_read_runs_again(world: World) -> None:
    """Its caller notices nothing but the time."""
    world.ledger.register(streaming_job("a"), priority=0)
    world.claim("a")
    world.keep_sweeping(14)
    assert world.record("a").status == "queued"


class TestEnhancing:
    """A job that awaits its enhancement has no message in its own queue."""

    def waiting(self, world: World) -> None:
        world.ledger.register(enhanced_job("a"), priority=6)
        world.ledger.mark_published("a", 1)
        world.outlet.messages = 0

    def test_it_is_neither_forgotten_nor_starved(self, world: World) -> None:
        """Its queue is empty and others overtake it, and all is well."""
        self.waiting(world)
        world.ledger.register(enhanced_job("b").model_copy(update={"enhance_prompt": False}), priority=6)
        world.claim("b")
        world.keep_sweeping(50)
        assert "a" not in world.outlet.published
        assert world.record("a").enhancement == "wanted"

    @pytest.mark.parametrize("begun", [False, True])
    def test_it_is_generated_without_them_after_a_minute(self, world: World, begun: bool) -> None:
        """A chat worker that is busy, hangs or died costs a minute, never the job."""
        self.waiting(world)
        if begun:
            assert world.ledger.begin_enhancement("a", 1, lease_s=10, token="e")
        world.keep_sweeping(58)
        assert world.outlet.published == []
        world.sweep()
        assert world.outlet.published == ["a"]
        record = world.record("a")
        assert (record.enhancement, record.stage) == ("over", None)
        assert record.enhancement_result is not None
        assert "too long" in record.enhancement_result["reason"]

    def test_after_that_it_is_a_job_like_any_other(self, world: World) -> None:
        """Its generation's message may get lost, too."""
        self.waiting(world)
        world.keep_sweeping(60)
        world.keep_sweeping(10)
        assert world.outlet.published[:2] == ["a", "a"]

    def test_an_enhanced_job_is_given_time_to_be_claimed(self, world: World) -> None:
        """Its generation was published a moment ago, however long the enhancement took."""
        self.waiting(world)
        world.outlet.messages = 1
        held = world.ledger.begin_enhancement("a", 1, lease_s=10, token="e")
        assert held is not None
        world.keep_sweeping(40)
        assert world.ledger.end_enhancement(held, result={"prompt": "a green hill"})
        world.keep_sweeping(30)
        assert world.outlet.published == []

    def test_one_that_was_never_published_is(self, world: World) -> None:
        """The shim may die before it has asked anybody to enhance."""
        world.ledger.register(enhanced_job("a"), priority=6)
        world.keep_sweeping(4)
        assert world.outlet.published == ["a"]
        assert world.record("a").enhancement == "wanted"

    def test_a_cancel_ends_it(self, world: World) -> None:
        """Also when the shim died between raising the flag and ending the job."""
        self.waiting(world)
        world.ledger.begin_enhancement("a", 1, lease_s=10, token="e")
        world.ledger.request_cancel("a")
        world.sweep()
        assert world.record("a").status == "cancelled"

    def test_a_paused_queue_has_all_the_time(self, world: World) -> None:
        """Generation could not begin anyway."""
        self.waiting(world)
        world.ledger.set_paused("wan_queue", True)
        world.keep_sweeping(90)
        assert world.record("a").enhancement == "wanted"
        world.ledger.set_paused("wan_queue", False)
        world.sweep()
        assert world.outlet.published == ["a"]
