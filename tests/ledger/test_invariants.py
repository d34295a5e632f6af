"""Invariants of the stored keys after each verb of random sequences."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ourvidz.errors import Conflict, NotFound, OutOfMemory
from ourvidz.jobs.job import ChatJob, ImageJob, Message, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Enhancement, NextLease, OutboxEvent, Record, Verdict, Worker
from ourvidz.recovery.inspection import check_events, check_jobs, check_user_indexes
from ourvidz.recovery.sweep import SweepOptions, sweep
from ourvidz.testing import key_prefix, redis_url
from tests.properties import examples

JOB_IDS = ("a", "b:1")
JOBS = st.sampled_from(JOB_IDS)
OFFSETS = st.sampled_from([0] * 8 + [1, -1])
"""Offset of a run or fence from the current one: mostly 0, otherwise outdated or not yet reached."""
WORKERS = ("w1", "w2")
TERMINAL = {"completed", "failed", "cancelled"}
OUTCOMES = st.sampled_from(
    [
        Outcome(status="completed", metadata={"generation_time": 1.5}),
        Outcome.failure(OutOfMemory("no memory")),
        Outcome(status="cancelled"),
    ]
)
OPTIONS = SweepOptions(
    interval_s=2, lease_s=10, empty_s=15, unclaimed_s=86400, retention_s=7 * 86400, enhance_within_s=60
)


def image_job(job_id: str, prompt: str = "circle") -> ImageJob:
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


def oversized_job(job_id: str) -> ImageJob:
    return image_job(job_id, "square " * 60)


def enhanced_job(job_id: str) -> VideoJob:
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


def streamed_chat(job_id: str) -> ChatJob:
    messages = (Message(role="user", content="circle"),)
    return ChatJob(
        id=job_id,
        type="chat_conversation",
        expected_time=3,
        messages=messages,
        max_tokens=9,
        seed=1,
        stream=True,
    )


JOB_KINDS = st.sampled_from([image_job, oversized_job, enhanced_job, streamed_chat])
QUEUES = ("sdxl_queue", "wan_queue", "chat_queue")


def worker(name: str) -> Worker:
    return Worker(
        id=name,
        family="sdxl",
        queue="sdxl_queue",
        host="here",
        pid=1,
        gpu=None,
        state="idle",
        models=(),
        version="1",
        started_at=0.0,
        seen_at=0.0,
    )


@dataclass
class Keys:
    """The stored state of a ledger, read directly from Redis."""

    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    documents: set[str] = field(default_factory=set)
    streams: set[str] = field(default_factory=set)
    pending: dict[str, list[str]] = field(default_factory=dict)
    """Job id → ids of its pending events in order."""
    events: dict[str, dict[str, str]] = field(default_factory=dict)
    by_state: dict[str, set[str]] = field(default_factory=dict)
    queued: dict[str, dict[str, float]] = field(default_factory=dict)
    sets: dict[str, dict[str, float]] = field(default_factory=dict)
    """The other sorted sets by name: `leases`, `finished`, `due`, `documents`, `index:…`."""

    @classmethod
    def read(cls, client: redis.Redis, prefix: str) -> Keys:
        keys = cls()
        for key in client.scan_iter(f"{prefix}*", count=1000):
            name = key.removeprefix(prefix)
            kind, _, rest = name.partition(":")
            if kind == "job":
                keys.jobs[rest] = client.hgetall(key)
            elif kind == "doc":
                keys.documents.add(rest)
            elif kind == "stream":
                keys.streams.add(rest)
            elif kind == "rows":
                keys.pending[rest] = client.zrange(key, 0, -1)
            elif kind == "event":
                keys.events[rest] = client.hgetall(key)
            elif kind == "letters":
                keys.by_state[rest] = set(client.zrange(key, 0, -1))
            elif kind == "queued":
                keys.queued[rest] = dict(client.zrange(key, 0, -1, withscores=True))
            elif kind in ("leases", "finished", "due", "documents", "deleting", "index"):
                keys.sets[name] = dict(client.zrange(key, 0, -1, withscores=True))
        return keys

    def with_status(self, *statuses: str) -> set[str]:
        return {job_id for job_id, job in self.jobs.items() if job["status"] in statuses}


RECENCY = st.sampled_from([None] * 6 + [0, 1, 2, 5])
"""Which claim, enhancement or event a verb uses: one that is held now (None), or one of the latest."""
VERBS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "pass_time": (3, {"seconds": st.sampled_from([0.5, 5, 20, 4000, 90000]), "busy": st.booleans()}),
    "set_clock": (1, {"seconds": st.sampled_from([-600, -3, 3, 600])}),
    "register": (
        3,
        {
            "job_id": JOBS,
            "kind": JOB_KINDS,
            "priority": st.sampled_from([0, 3, 6]),
            "suppressed": st.sampled_from([False, False, True]),
        },
    ),
    "mark_published": (1, {"job_id": JOBS}),
    "claim": (10, {"job_id": JOBS, "offset": OFFSETS, "worker": st.sampled_from(WORKERS)}),
    "step": (
        6,
        {
            "recency": RECENCY,
            "progress": st.one_of(st.none(), st.integers(0, 100)),
            "stage": st.sampled_from([None, "x"]),
            "kind": st.sampled_from(["token", "progress"]),
            "add_event": st.booleans(),
        },
    ),
    "renew": (2, {"recency": RECENCY, "lease_s": st.sampled_from([5, 50])}),
    "release": (3, {"recency": RECENCY, "due_in_s": st.sampled_from([0, 0, 10])}),
    "end_claim": (4, {"recency": RECENCY, "outcome": OUTCOMES}),
    "end_any": (1, {"job_id": JOBS, "run_offset": OFFSETS, "fence_offset": OFFSETS, "outcome": OUTCOMES}),
    "rescue": (2, {"job_id": JOBS, "offset": OFFSETS, "counted": st.booleans()}),
    "use_other_token": (3, {"recency": RECENCY, "outcome": OUTCOMES}),
    "raise_priority": (2, {"job_id": JOBS, "offset": OFFSETS, "priority": st.sampled_from([0, 3])}),
    "reopen": (5, {"job_id": JOBS}),
    "request_cancel": (1, {"job_id": JOBS}),
    "begin_deletion": (1, {"job_id": JOBS}),
    "delete": (3, {"job_id": JOBS}),
    "purge": (2, {"older_than_s": st.sampled_from([0, 5000]), "limit": st.sampled_from([1, 200])}),
    "begin_enhancement": (3, {"job_id": JOBS, "offset": OFFSETS}),
    "continue_enhancement": (
        3,
        {
            "recency": RECENCY,
            "prompt": st.sampled_from(["a circle", "a square"]),
            "end": st.booleans(),
        },
    ),
    "skip_enhancement": (
        1,
        {"job_id": JOBS, "offset": OFFSETS, "reason": st.sampled_from(["late", "no worker"])},
    ),
    "pause_or_drain": (
        1,
        {"name": st.sampled_from([*QUEUES, *WORKERS]), "stopped": st.sampled_from([True, False, False])},
    ),
    "lease_event": (8, {"job_id": JOBS}),
    "settle_event": (
        8,
        {
            "recency": RECENCY,
            "verb": st.sampled_from(
                ["mark_delivered", "mark_delivered", "postpone", "dead_letter", "replay", "replay"]
            ),
            "leases_next": st.booleans(),
        },
    ),
    "announce": (2, {}),
    "sweep": (2, {}),
}
"""Each verb with its weight and the strategies of its arguments. Unweighted, most jobs would end at once."""
FOCUS = {
    "all verbs": (),
    "outbox": ("claim", "step", "end_claim", "lease_event", "settle_event", "pass_time", "reopen"),
    "enhancement": ("register", "begin_enhancement", "continue_enhancement", "skip_enhancement", "delete"),
}
"""Verbs that are sent twelve times as often."""


def calls(focus: tuple[str, ...]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Calls of verbs, drawn by their weights."""
    weighted = [
        verb for verb, (weight, _) in VERBS.items() for _ in range(weight * (12 if verb in focus else 1))
    ]
    return st.sampled_from(weighted).flatmap(
        lambda verb: st.tuples(st.just(verb), st.fixed_dictionaries(VERBS[verb][1]))
    )


class Broker:
    """A broker that accepts every message and reports empty queues."""

    def publish(self, record: Record) -> bool:
        return True

    def wake(self, queue: str) -> None:
        """Accept the message."""

    def waiting_messages(self, queue: str) -> int:
        return 0


class Invariants(RuleBasedStateMachine):
    """Calls verbs with current and outdated arguments, most of them twice, and checks the stored keys."""

    @initialize(kinds=st.tuples(JOB_KINDS, JOB_KINDS), suppressed=st.sampled_from([None, *JOB_IDS]))
    def start(self, kinds: tuple[Any, ...], suppressed: str | None) -> None:
        self.server_time = 1_000_000.0
        self.time = self.server_time
        """The ledger's time."""
        self.tokens = (f"t{number}" for number in itertools.count())
        self._prefixes = key_prefix()
        self.prefix = self._prefixes.__enter__()
        self.client = redis.Redis.from_url(redis_url(), decode_responses=True)
        self.ledger = Ledger(
            redis_url(),
            prefix=self.prefix,
            clock=lambda: self.server_time,
            document_limit=400,
            retry_window_s=3600,
        )
        self.claims: list[Claim] = []
        self.deleting: set[str] = set()
        """The ids of jobs whose deletion has begun."""
        self.released: set[str] = set()
        """The tokens of the claims that were released."""
        self.enhancements: list[Enhancement] = []
        self.events: list[OutboxEvent] = []
        self.delivered: set[str] = set()
        self.leased: dict[str, float] = {}
        """Event id → end of the lease, of leased events that are not settled."""
        self.fences: dict[str, int] = {}
        """Job id → highest fence so far, of deleted jobs too."""
        self.sequences: dict[str, int] = {}
        self.endings: dict[tuple[str, int], str] = {}
        """(Job id, run) → stored outcome, of jobs that were not deleted."""
        self.ended = 0
        self.paused: set[str] = set()
        self.draining: set[str] = set()
        for job_id, kind in zip(JOB_IDS, kinds, strict=True):
            self.register(job_id, kind, 6, job_id == suppressed)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.check_reports_nothing()
            self.ledger.close()
            self.client.close()
            self._prefixes.__exit__(None, None, None)

    def check_reports_nothing(self) -> None:
        """`ourvidz ledger check` must not take what the verbs leave for damage."""
        ledger = self.ledger
        assert list(check_jobs(ledger, ledger.job_ids(), repair=False)) == []
        assert list(check_events(ledger, ledger.event_ids(), repair=False)) == []
        assert list(check_user_indexes(ledger, repair=False)) == []

    def drop_job(self, job_id: str) -> None:
        """Delete the expected state of a deleted job, whose id may be registered again."""
        self.sequences.pop(job_id, None)
        self.deleting.discard(job_id)
        self.endings = {key: outcome for key, outcome in self.endings.items() if key[0] != job_id}
        self.enhancements = [held for held in self.enhancements if held.job_id != job_id]

    def pick_claim(self, recency: int | None) -> Claim:
        held = self.held_claims()
        return held[-1] if recency is None and held else self.claims[-1 - (recency or 0) % len(self.claims)]

    def pick_event(self, recency: int | None) -> OutboxEvent:
        leased = [event for event in self.events if event.event_id in self.leased]
        return (
            leased[-1] if recency is None and leased else self.events[-1 - (recency or 0) % len(self.events)]
        )

    def move_clock(self, seconds: float) -> None:
        """Move the server's clock. The ledger's time goes back by less than a second."""
        self.server_time += seconds
        before, self.time = self.time, self.ledger.now()
        assert self.time >= max(before - 1, self.server_time - 1e-5)
        assert self.time - before <= max(0.0, seconds) + 1e-5

    def pass_time(self, seconds: float, busy: bool) -> None:
        """`busy`: scripts of other jobs run meanwhile. Without them the server seems to have been away."""
        for _ in range(5 if busy else 1):
            self.move_clock(seconds / (5 if busy else 1))

    def set_clock(self, seconds: float) -> None:
        """The server's clock is set while all else goes on."""
        self.move_clock(seconds)

    def register(self, job_id: str, kind: Any, priority: int, suppressed: bool) -> None:
        known = self.ledger.get(job_id)
        answer = self.ledger.register(kind(job_id), priority=priority, suppress_callbacks=suppressed)
        assert answer.created == (known is None)
        assert known in (None, answer.record), "a taken id changes nothing"

    def mark_published(self, job_id: str) -> None:
        self.ledger.mark_published(job_id, 1)

    def current(self, job_id: str) -> Record:
        """The record of a job; a job that was deleted is registered again."""
        if self.ledger.get(job_id) is None:
            self.register(job_id, image_job, 6, False)
        record = self.ledger.get(job_id)
        assert record is not None
        return record

    def claim(self, job_id: str, offset: int, worker: str) -> None:
        token, before = next(self.tokens), self.current(job_id)
        run = before.run + offset
        claim = self.ledger.claim(job_id, run, worker_id=worker, lease_s=10, token=token)
        assert self.ledger.claim(job_id, run, worker_id=worker, lease_s=10, token=token) == claim
        if claim is not None:
            assert (before.status, before.run, before.cancel_requested) == ("queued", run, False)
            assert before.due_at <= self.time
            assert before.queue not in self.paused
            assert worker not in self.draining
            assert (claim.record.attempt, claim.token) == (before.attempt + 1, token)
            assert claim.fence > max(self.fences.values())
            self.claims.append(claim)

    def step(
        self, recency: int | None, progress: int | None, stage: str | None, kind: Any, add_event: bool
    ) -> None:
        if self.claims:
            claim = self.pick_claim(recency)
            before = self.ledger.get(claim.job_id)
            verdict = self.ledger.step(
                claim, progress=progress, stage=stage, items=[(kind, {"t": "x"})], add_event=add_event
            )
            after = self.ledger.get(claim.job_id)
            assert (verdict is Verdict.LOST) == (not self.is_held(claim, before))
            if before is None or verdict is Verdict.LOST:
                assert after == before
                return
            assert after is not None
            assert (verdict is Verdict.CANCEL) == before.cancel_requested
            assert after.progress >= before.progress

    def renew(self, recency: int | None, lease_s: float) -> None:
        if self.claims:
            claim = self.pick_claim(recency)
            held = self.is_held(claim, self.ledger.get(claim.job_id))
            assert self.ledger.renew(claim, lease_s=lease_s) == held

    def release(self, recency: int | None, due_in_s: float) -> None:
        if self.claims:
            claim = self.pick_claim(recency)
            held = self.is_held(claim, self.ledger.get(claim.job_id))
            released = self.ledger.release(claim, code="OOM_ERROR", due_in_s=due_in_s)
            assert released == (held or claim.token in self.released), "a second release answers the same"
            if held:
                self.released.add(claim.token)
                assert self.current(claim.job_id).fence > claim.fence

    def end_claim(self, recency: int | None, outcome: Outcome) -> None:
        if self.claims:
            claim = self.pick_claim(recency)
            self.end(claim, outcome)

    def end_any(self, job_id: str, run_offset: int, fence_offset: int, outcome: Outcome) -> None:
        record = self.current(job_id)
        self.end(replace(record, run=record.run + run_offset, fence=record.fence + fence_offset), outcome)

    def end(self, job: Claim | Record, outcome: Outcome) -> None:
        before = self.ledger.get(job.job_id)
        committed = self.ledger.end(job, outcome=outcome)
        after = self.ledger.get(job.job_id)
        assert self.ledger.end(job, outcome=outcome) == committed
        if not committed:
            assert after == before
        else:
            assert before is not None
            assert (before.run, before.fence, before.token or "") == (job.run, job.fence, job.token or "")
            assert before.outcome in (None, outcome), "a run ends once"

    def rescue(self, job_id: str, offset: int, counted: bool) -> None:
        before = self.current(job_id)
        rescued = self.ledger.rescue(replace(before, fence=before.fence + offset), counted=counted)
        assert rescued == (before.status == "processing" and offset == 0 and before.repeatable)
        assert not rescued or self.current(job_id).fence > before.fence

    def use_other_token(self, recency: int | None, outcome: Outcome) -> None:
        """A claim that a failover of the server lost: its run and fence were given away again."""
        if self.claims:
            claim = self.pick_claim(recency)
            before = self.ledger.get(claim.job_id)
            record = replace(claim.record, token="another")
            if before is not None:
                record = replace(record, run=before.run, fence=before.fence)
            other = Claim(claim.job, record)
            assert self.ledger.step(other, progress=100, items=[("token", {"t": "x"})]) is Verdict.LOST
            assert not self.ledger.renew(other, lease_s=1000)
            assert not self.ledger.release(other, code="OOM_ERROR", due_in_s=0)
            assert not self.ledger.rescue(other)
            assert not self.ledger.end(other, outcome=outcome)
            assert self.ledger.get(claim.job_id) == before

    def raise_priority(self, job_id: str, offset: int, priority: int) -> None:
        before = self.current(job_id)
        if self.ledger.raise_priority(job_id, run=before.run + offset, priority=priority):
            assert offset == 0
            assert priority < before.priority
            assert not self.ledger.raise_priority(job_id, run=before.run, priority=0), "once a run"

    def reopen(self, job_id: str) -> None:
        before, has_document = self.ledger.get(job_id), self.ledger.job(job_id) is not None
        try:
            record = self.ledger.reopen(job_id, priority=6)
        except (Conflict, NotFound):
            allowed = before is not None and before.status in ("failed", "cancelled") and has_document
            assert not allowed or job_id in self.deleting
        else:
            assert job_id not in self.deleting
            assert before is not None
            assert (record.run, record.fence, record.attempt) == (before.run + 1, before.fence, 0)
            assert (record.outcome, record.failures, record.cancel_requested) == (None, {}, False)

    def request_cancel(self, job_id: str) -> None:
        before = self.ledger.get(job_id)
        try:
            assert self.ledger.request_cancel(job_id).cancel_requested
        except (Conflict, NotFound):
            assert before is None or before.finished

    def begin_deletion(self, job_id: str) -> None:
        before, pending = self.ledger.get(job_id), self.ledger.next_event(job_id)
        try:
            assert self.ledger.begin_deletion(job_id) == before
        except (Conflict, NotFound):
            assert before is None or not before.finished or pending is not None
            assert job_id not in self.deleting
        else:
            assert pending is None or job_id in self.deleting
            self.deleting.add(job_id)

    def delete(self, job_id: str) -> None:
        before, pending = self.ledger.get(job_id), self.ledger.next_event(job_id)
        try:
            assert self.ledger.delete(job_id) == before
        except (Conflict, NotFound):
            assert before is None or not before.finished or pending is not None
            assert job_id not in self.deleting
        else:
            assert before is not None
            assert before.finished
            assert pending is None or job_id in self.deleting
            self.drop_job(job_id)

    def purge(self, older_than_s: float, limit: int) -> None:
        before = {job_id: self.ledger.get(job_id) for job_id in JOB_IDS}
        pending = {job_id for job_id in JOB_IDS if self.ledger.next_event(job_id) is not None}
        number = self.ledger.purge(older_than_s=older_than_s, limit=limit)
        gone = [job_id for job_id, record in before.items() if record and self.ledger.get(job_id) is None]
        assert len(gone) == number <= limit
        assert not (pending | self.deleting) & set(gone)
        for job_id in gone:
            record = before[job_id]
            assert record is not None
            assert record.finished_at is not None
            assert record.finished_at <= self.time - older_than_s
            self.drop_job(job_id)

    def begin_enhancement(self, job_id: str, offset: int) -> None:
        token, run = next(self.tokens), self.current(job_id).run + offset
        held = self.ledger.begin_enhancement(job_id, run, lease_s=10, token=token)
        assert self.ledger.begin_enhancement(job_id, run, lease_s=10, token=token) == held
        if held is not None:
            assert (held.record.status, held.record.run, held.record.enhancement) == ("queued", run, "wanted")
            assert self.ledger.begin_enhancement(job_id, run, lease_s=10, token="another") is None
            self.enhancements.append(held)

    def continue_enhancement(self, recency: int | None, prompt: str, end: bool) -> None:
        if self.enhancements:
            held = self.enhancements[-1 - (recency or 0) % len(self.enhancements)]
            verdict = self.ledger.renew_enhancement(held, lease_s=10)
            record = self.current(held.job_id)
            if verdict is not Verdict.LOST:
                assert (record.run, record.enhancement) == (held.run, "wanted")
            if not end:
                return
            stored = self.ledger.end_enhancement(held, result={"prompt": prompt})
            assert self.ledger.end_enhancement(held, result={"prompt": prompt}) == stored
            if stored:
                assert self.current(held.job_id).enhancement_result == {"prompt": prompt}

    def skip_enhancement(self, job_id: str, offset: int, reason: str) -> None:
        self.ledger.skip_enhancement(job_id, run=self.current(job_id).run + offset, reason=reason)

    def pause_or_drain(self, name: str, stopped: bool) -> None:
        if name in QUEUES:
            self.ledger.set_paused(name, stopped)
            (self.paused.add if stopped else self.paused.discard)(name)
        else:
            self.ledger.heartbeat(worker(name))
            self.ledger.set_draining(name, stopped)
            (self.draining.add if stopped else self.draining.discard)(name)

    def lease_event(self, job_id: str) -> None:
        token, head = next(self.tokens), self.ledger.next_event(job_id)
        event = self.ledger.lease_event(job_id, lease_s=30, token=token)
        assert self.ledger.lease_event(job_id, lease_s=30, token=token) == event
        if event is not None:
            assert head is not None
            assert (event.event_id, event.deliveries) == (head.event_id, head.deliveries + 1)
            assert event.due_at <= self.time
            assert self.ledger.lease_event(job_id, lease_s=30, token="another") is None
            assert job_id not in self.ledger.due_deliveries()
            self.events.append(event)
            self.leased[event.event_id] = self.time + 30

    def settle_event(self, recency: int | None, verb: str, leases_next: bool) -> None:
        if not self.events:
            return
        event = self.pick_event(recency)
        before, following = self.ledger.get_event(event.event_id), None
        then = NextLease(30, next(self.tokens)) if leases_next else None
        if verb == "mark_delivered":
            following = self.ledger.mark_delivered(event, status=200, then=then)
            assert self.ledger.mark_delivered(event, status=200, then=then) == following
            self.delivered.add(event.event_id)
        elif verb == "postpone":
            self.ledger.postpone(event, due_in_s=15, status=None, error="refused")
        elif verb == "dead_letter":
            following = self.ledger.dead_letter(event, status=400, error="bad", then=then)
            assert self.ledger.dead_letter(event, status=400, error="bad", then=then) == following
        elif before is not None:
            assert self.ledger.replay(event.event_id).state == "pending"
        after = self.ledger.get_event(event.event_id)
        if following is not None:
            assert (following.job_id, following.leased_until) == (event.job_id, self.time + 30)
            assert following.due_at <= self.time
            self.events.append(following)
        if following is not None and following.event_id == event.event_id:
            assert before is not None
            assert before.deliveries == following.deliveries - 1, "an event that was leased by nobody"
            self.leased[event.event_id] = self.time + 30
            return
        if verb in ("postpone", "dead_letter") and before is not None:
            outdated = (before.state, before.deliveries) != ("pending", event.deliveries)
            assert not outdated or after == before, "a later lease took the event over"
        if after is None or after != before:
            self.leased.pop(event.event_id, None)
        if following is not None:
            self.leased[following.event_id] = self.time + 30

    def announce(self) -> None:
        """Whatever is due is announced to the io processes, and nothing else."""
        self.client.delete(f"{self.prefix}ready")
        assert self.ledger.announce_due("io@host")
        announced = [json.loads(entry)[0] for entry in self.client.lrange(f"{self.prefix}ready", 0, -1)]
        assert sorted(announced) == sorted(self.ledger.due_deliveries())

    def sweep(self) -> None:
        now, before = self.time, {job_id: self.ledger.get(job_id) for job_id in JOB_IDS}
        expired = {record.job_id for record in self.ledger.expired()}
        sweep(self.ledger, Broker(), OPTIONS)
        assert self.ledger.expired() == []
        for job_id, record in before.items():
            after = self.ledger.get(job_id)
            if after is None:
                self.drop_job(job_id)
            elif record is not None and record.status == "processing" and job_id not in expired:
                assert after == record, "the lease lasts, or its holder has time to come back"
            assert job_id not in expired or (record is not None and (record.lease_until or 0) <= now)

    def held_claims(self) -> list[Claim]:
        records = {job_id: self.ledger.get(job_id) for job_id in JOB_IDS}
        return [claim for claim in self.claims if self.is_held(claim, records[claim.job_id])]

    @staticmethod
    def is_held(claim: Claim, record: Record | None) -> bool:
        return record is not None and (record.status, record.run, record.fence, record.token) == (
            "processing",
            claim.run,
            claim.fence,
            claim.token,
        )

    @invariant()
    def the_keys_are_consistent(self) -> None:
        if hasattr(self, "ledger"):
            keys = Keys.read(self.client, self.prefix)
            self.check_queues_and_leases(keys)
            self.check_runs(keys)
            self.check_outbox(keys)
            self.check_events_of_ended_runs(keys)
            self.check_nothing_is_left_behind(keys)

    def check_queues_and_leases(self, keys: Keys) -> None:
        """Nothing is queued twice; queues and leases hold the records of their status and no others."""
        places = Counter(job_id for queue in keys.queued.values() for job_id in queue)
        assert set(places) == keys.with_status("queued")
        assert set(places.values()) <= {1}
        for queue, jobs in keys.queued.items():
            for job_id, score in jobs.items():
                job = keys.jobs[job_id]
                assert job["queue"] == queue
                assert score == int(job["priority"]) * 1e12 + int(job["order"])
        leases = keys.sets.get("leases", {})
        assert set(leases) == keys.with_status("processing")
        assert leases == {job_id: float(keys.jobs[job_id]["lease_until"]) for job_id in leases}
        assert set(keys.sets.get("finished", {})) == keys.with_status(*TERMINAL)
        assert set(keys.sets.get("deleting", {})) == self.deleting <= keys.with_status(*TERMINAL)
        holders = Counter(claim.job_id for claim in self.held_claims())
        assert set(holders.values()) <= {1}, "one claim is held at a time"

    def check_runs(self, keys: Keys) -> None:
        """The fence of an id only rises, a run ends once, and every end is counted."""
        for job_id, job in keys.jobs.items():
            fence, run = int(job["fence"]), int(job["run"])
            assert fence >= self.fences.get(job_id, 0)
            self.fences[job_id] = fence
            assert 0 <= int(job["attempt"]) <= fence
            assert 0 <= float(job["progress"]) <= 100
            assert ("outcome" in job) == (job["status"] in TERMINAL)
            assert job.get("enhancement") != "wanted" or job["status"] != "processing"
            if "outcome" in job:
                self.ended += (job_id, run) not in self.endings
                assert self.endings.setdefault((job_id, run), job["outcome"]) == job["outcome"]
        counted = {
            name: number for name, number in self.ledger.counters().items() if name.startswith("jobs.")
        }
        assert sum(counted.values()) == self.ended

    def check_outbox(self, keys: Keys) -> None:
        """Each event is in one state; those of a job are in order and leased one at a time."""
        pending = [event for events in keys.pending.values() for event in events]
        assert set(pending) == keys.by_state.get("pending", set())
        states = Counter(event for events in keys.by_state.values() for event in events)
        assert set(states) == set(keys.events)
        assert set(states.values()) <= {1}
        for state, events in keys.by_state.items():
            assert all(keys.events[event]["state"] == state for event in events)
        for job_id, events in keys.pending.items():
            rows = [keys.events[event] for event in events]
            sequences = [int(row["seq"]) for row in rows]
            assert sequences == sorted(set(sequences))
            assert {row["job"] for row in rows} == {job_id}
            leased = [float(row.get("lease_until") or 0) > self.time for row in rows]
            assert sum(leased) <= 1
            head = max(float(rows[0]["due_at"]), float(rows[0].get("lease_until") or 0))
            assert keys.sets["due"][job_id] == head
        assert set(keys.sets.get("due", {})) == set(keys.pending)
        assert {event for event, until in self.leased.items() if until > self.time} <= set(keys.events)

    def check_events_of_ended_runs(self, keys: Keys) -> None:
        """Every ended run has one terminal event, unless its callbacks are suppressed."""
        for job_id, job in keys.jobs.items():
            events = {event: row for event, row in keys.events.items() if row["job"] == job_id}
            if "quiet" in job:
                assert not events
                continue
            assert len({row["seq"] for row in events.values()}) == len(events)
            assert int(job["seq"]) >= max((int(row["seq"]) for row in events.values()), default=0)
            terminal = Counter(row["run"] for row in events.values() if row["kind"] in TERMINAL)
            assert set(terminal.values()) <= {1}
            if job["status"] in TERMINAL and job["run"] not in terminal:
                # Only a delivered event may be missing: `purge` deletes it after a day.
                last = job["events"].split(" ")[-1]
                assert last in self.delivered

    def check_nothing_is_left_behind(self, keys: Keys) -> None:
        """Documents, streams, events and places in an index belong to jobs that exist."""
        jobs = set(keys.jobs)
        assert keys.documents <= jobs
        assert keys.streams <= jobs
        assert {row["job"] for row in keys.events.values()} <= jobs
        assert set(keys.sets.get("documents", {})) <= keys.documents & keys.with_status("failed", "cancelled")
        assert set(keys.sets.get("index:all", {})) == jobs
        for name, members in keys.sets.items():
            if name.startswith("index:user:"):
                user = name.removeprefix("index:user:")
                assert set(members) == {
                    job_id for job_id, job in keys.jobs.items() if job.get("user") == user
                }
        live = keys.with_status("queued", "processing")
        assert live <= keys.documents, "a live job has its document"


@pytest.mark.parametrize("focus", FOCUS)
def test_the_invariants_hold_after_every_verb(focus: str) -> None:
    """The tests of each verb check it alone; this test checks sequences."""

    class Machine(Invariants):
        @rule(call=calls(FOCUS[focus]))
        def send(self, call: tuple[str, dict[str, Any]]) -> None:
            verb, arguments = call
            getattr(self, verb)(**arguments)

    run_state_machine_as_test(
        Machine,
        settings=examples(
            25, repeatable=True, stateful_step_count=50, suppress_health_check=list(HealthCheck)
        ),
    )
