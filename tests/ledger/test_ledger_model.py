"""Both ledgers are driven with the same random verbs and must give the same answers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ourvidz.errors import OurvidzError, OutOfMemory
from ourvidz.jobs.job import ChatJob, ImageJob, Message, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.memory_store import MemoryLedger
from ourvidz.ledger.record import Claim, Enhancement, OutboxEvent
from ourvidz.ledger.redis_store import RedisLedger

JOBS = st.sampled_from(["a", "b", "c:1"])
RUNS = st.integers(1, 2)
FENCES = st.integers(0, 4)
QUEUES = ("sdxl_queue", "wan_queue", "chat_queue")
OUTCOMES = st.sampled_from(
    [
        Outcome(status="completed", metadata={"generation_time": 1.5}),
        Outcome.failure(OutOfMemory("no memory")),
        Outcome(status="cancelled"),
    ]
)


def a_job(job_id: str, prompt: str) -> ImageJob:
    return ImageJob(
        id=job_id,
        type="sdxl_image_fast",
        user_id=f"user-{prompt[:1]}",
        expected_time=30,
        prompt=prompt,
        steps=5,
        guidance_scale=1,
        width=64,
        height=64,
        seed=1,
    )


def a_clip(job_id: str) -> VideoJob:
    """Waits for its words."""
    return VideoJob(
        id=job_id,
        type="image7b_fast_enhanced",
        user_id="user-c",
        expected_time=30,
        prompt="circle",
        steps=5,
        guidance_scale=1,
        width=64,
        height=64,
        frames=1,
        seed=1,
        enhance_prompt=True,
    )


def a_chat(job_id: str) -> ChatJob:
    """Its caller reads along."""
    asked = (Message(role="user", content="circle"),)
    return ChatJob(
        id=job_id,
        type="chat_conversation",
        expected_time=3,
        messages=asked,
        max_tokens=9,
        seed=1,
        stream=True,
    )


class TwoLedgers(RuleBasedStateMachine):
    """Every rule asks both ledgers the same and compares what they say."""

    url = ""

    @initialize()
    def start(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
        self.time = 1_000_000.0
        self.tokens = itertools.count()
        self.claims: list[Claim] = []
        self.enhancements: list[Enhancement] = []
        self.events: list[OutboxEvent] = []
        self.memory = MemoryLedger(clock=lambda: self.time, document_limit=400)
        self.redis = RedisLedger(self.url, clock=lambda: self.time, document_limit=400)

    def teardown(self) -> None:
        if hasattr(self, "redis"):
            self.redis.close()

    def both(self, verb: str, *args: Any, **options: Any) -> Any:
        """Ask both; the common answer, or the class of the common refusal."""
        answers = []
        for ledger in (self.memory, self.redis):
            try:
                answers.append(getattr(ledger, verb)(*args, **options))
            except OurvidzError as refused:
                answers.append((type(refused), refused.message))
        assert answers[0] == answers[1], verb
        return answers[0]

    @rule(seconds=st.sampled_from([0.5, 5, 20, 4000, 90000]))
    def pass_time(self, seconds: float) -> None:
        self.time += seconds

    @rule(
        job_id=JOBS, prompt=st.sampled_from(["circle", "square " * 60]), priority=st.sampled_from([0, 3, 6])
    )
    def register(self, job_id: str, prompt: str, priority: int) -> None:
        self.both("register", a_job(job_id, prompt), priority=priority)

    @rule(job_id=JOBS, kind=st.sampled_from([a_clip, a_clip, a_chat]), quiet=st.booleans())
    def register_another_kind(self, job_id: str, kind: Any, quiet: bool) -> None:
        self.both("register", kind(job_id), priority=6, quiet=quiet)

    @rule(job_id=JOBS, run=RUNS)
    def begin_enhancing(self, job_id: str, run: int) -> None:
        token = f"e{next(self.tokens)}"
        for _ in range(2):
            held = self.both("begin_enhancing", job_id, run, lease_s=10, token=token)
        if held is not None:
            self.enhancements.append(held)

    @rule(data=st.data())
    def go_on_enhancing(self, data: st.DataObject) -> None:
        if self.enhancements:
            self.both("keep_enhancing", data.draw(st.sampled_from(self.enhancements)), lease_s=10)

    @rule(data=st.data(), prompt=st.sampled_from(["a circle", "a square"]))
    def end_enhancing(self, data: st.DataObject, prompt: str) -> None:
        if self.enhancements:
            held = data.draw(st.sampled_from(self.enhancements))
            for _ in range(2):
                self.both("end_enhancing", held, wording={"prompt": prompt})

    @rule(job_id=JOBS, run=RUNS, reason=st.sampled_from(["late", "nobody"]))
    def give_up_enhancing(self, job_id: str, run: int, reason: str) -> None:
        self.both("give_up_enhancing", job_id, run=run, reason=reason)

    @rule(job_id=JOBS, run=RUNS, worker=st.sampled_from(["w1", "w2"]))
    def claim(self, job_id: str, run: int, worker: str) -> None:
        token = f"t{next(self.tokens)}"
        for _ in range(2):
            claim = self.both("claim", job_id, run, worker_id=worker, lease_s=10, token=token)
        if claim is not None:
            self.claims.append(claim)

    @rule(
        data=st.data(),
        progress=st.one_of(st.none(), st.integers(0, 100)),
        stage=st.sampled_from([None, "x"]),
        kind=st.sampled_from(["token", "progress"]),
    )
    def step(self, data: st.DataObject, progress: int | None, stage: str | None, kind: str) -> None:
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims))
            self.both("step", claim, progress=progress, stage=stage, items=[(kind, {"t": "x"})])

    @rule(data=st.data(), lease_s=st.sampled_from([5, 50]))
    def renew(self, data: st.DataObject, lease_s: float) -> None:
        if self.claims:
            self.both("renew", data.draw(st.sampled_from(self.claims)), lease_s=lease_s)

    @rule(data=st.data(), due_in_s=st.sampled_from([0, 10]))
    def release(self, data: st.DataObject, due_in_s: float) -> None:
        if self.claims:
            self.both("release", data.draw(st.sampled_from(self.claims)), code="OOM_ERROR", due_in_s=due_in_s)

    @rule(data=st.data(), outcome=OUTCOMES)
    def end_a_claim(self, data: st.DataObject, outcome: Outcome) -> None:
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims))
            for _ in range(2):
                self.both(
                    "end", claim.job_id, run=claim.run, fence=claim.fence, outcome=outcome, worker_id="w1"
                )

    @rule(job_id=JOBS, run=RUNS, fence=FENCES, outcome=OUTCOMES)
    def end(self, job_id: str, run: int, fence: int, outcome: Outcome) -> None:
        self.both("end", job_id, run=run, fence=fence, outcome=outcome)

    @rule(job_id=JOBS, fence=FENCES, counted=st.booleans())
    def lose(self, job_id: str, fence: int, counted: bool) -> None:
        self.both("lose", job_id, fence=fence, counted=counted)

    @rule(job_id=JOBS, run=RUNS, priority=st.sampled_from([0, 3]))
    def lift(self, job_id: str, run: int, priority: int) -> None:
        self.both("lift", job_id, run=run, priority=priority)

    @rule(job_id=JOBS, verb=st.sampled_from(["reopen", "published", "request_cancel", "delete"]))
    def decide(self, job_id: str, verb: str) -> None:
        options = {"reopen": {"priority": 6}, "published": {"run": 1}}.get(verb, {})
        self.both(verb, job_id, **options)

    @rule(queue=st.sampled_from(QUEUES), paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        self.both("pause", queue, paused)

    @rule(job_id=JOBS)
    def take(self, job_id: str) -> None:
        event = self.both("take", job_id, lease_s=30, token=f"t{next(self.tokens)}")
        if event is not None:
            self.events.append(event)

    @rule(data=st.data(), verb=st.sampled_from(["delivered", "postpone", "bury", "replay"]))
    def settle(self, data: st.DataObject, verb: str) -> None:
        if not self.events:
            return
        event = data.draw(st.sampled_from(self.events))
        if verb == "delivered":
            self.both(verb, event, status=200)
        elif verb == "postpone":
            self.both(verb, event, due_in_s=15, status=None, error="refused")
        elif verb == "bury":
            self.both(verb, event, status=400, error="bad")
        else:
            self.both(verb, event.event_id)

    @rule(older_than_s=st.sampled_from([0, 5000]), limit=st.sampled_from([1, 200]))
    def purge(self, older_than_s: float, limit: int) -> None:
        self.both("purge", older_than_s=older_than_s, limit=limit)

    @rule()
    def sweep(self) -> None:
        self.both("tick")
        self.both("rearm", 10)

    @invariant()
    def they_look_the_same(self) -> None:
        if not hasattr(self, "redis"):
            return
        for job_id in ("a", "b", "c:1"):
            for verb in ("get", "job", "position", "head"):
                self.both(verb, job_id)
            said = [
                [replace(item, id="") for item in ledger.stream(job_id, limit=300)]
                for ledger in (self.memory, self.redis)
            ]
            # An hour after the end Redis drops a stream by its own clock, which stands still for this test.
            assert said[0] in (said[1], [])
        for verb in ("due", "expired", "counts", "page", "paused"):
            self.both(verb)
        self.both("page", user_id="user-c", status="failed", limit=1)
        for queue in QUEUES:
            self.both("waiting", queue)
            self.both("depth", queue)
        self.both("held_by", "w1")
        for state in ("pending", "delivered", "dead"):
            self.both("letters", state)
        for priority in (0, 3, 6):
            self.both("claimed_order", QUEUES[0], priority)
            self.both("claimed_at", QUEUES[0], priority)


def test_both_ledgers_give_the_same_answers(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's unit test sees in memory is what production does."""
    monkeypatch.setattr(TwoLedgers, "url", redis_url)
    run_state_machine_as_test(
        TwoLedgers,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
