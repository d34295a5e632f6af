"""The callback outbox: order, leases, retries, dead letters and replay."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import redis

from ourvidz.errors import NotFound, OutOfMemory
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import NextLease, Verdict, event_id
from tests.factories import worker

DONE = Outcome(status="completed", metadata={"seed": 7})
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def run_to(ledger, job_id="job-1", outcome=DONE, run=1):
    """Claim a job and end it."""
    claim = ledger.claim(job_id, run, worker_id="sdxl@a", lease_s=10, token=f"{job_id}-{run}")
    assert ledger.end(claim, outcome=outcome, worker_id="sdxl@a")


def deliver_all(ledger):
    """Deliver the due events of the job. Returns the sequence, kind and progress of each."""
    delivered = []
    while event := ledger.lease_event("job-1", lease_s=30, token=uuid4().hex):
        delivered.append((event.sequence, event.kind, event.metadata.get("progress")))
        ledger.mark_delivered(event, status=200)
    return delivered


@pytest.fixture
def completed_job_ledger(ledger, image_job):
    """A ledger with one completed job. Its `processing` event is delivered and its terminal event pending."""
    ledger.register(image_job(callback_url="https://example.org/hook"), priority=6)
    run_to(ledger)
    ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="p"), status=200)
    return ledger


def announced(ledger):
    """Take all announced jobs. Returns id and callback URL of each."""
    taken = iter(lambda: ledger.take_ready(wait_s=0.01), None)
    return [(ready.job_id, ready.callback_url) for ready in taken]


class TestAnnouncements:
    def test_a_job_is_announced_when_its_event_becomes_due(self, ledger, image_job):
        """An io process waits for it, and decides by its receiver whether it may deliver now."""
        ledger.register(image_job(callback_url="https://example.org/hook"), priority=6)
        ledger.register(image_job("job-2"), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
        assert announced(ledger) == [("job-1", "https://example.org/hook")]
        event = ledger.lease_event("job-1", lease_s=30, token="t")
        assert ledger.end(claim, outcome=DONE)
        run_to(ledger, "job-2")
        assert announced(ledger) == [("job-2", None)], "the event of job-1 waits for the one before it"
        ledger.mark_delivered(event, status=200)
        assert announced(ledger) == [("job-1", "https://example.org/hook")]

    def test_a_job_without_callbacks_is_not_announced(self, ledger, image_job):
        """Nobody would take it from the list."""
        ledger.register(image_job(), priority=6, suppress_callbacks=True)
        run_to(ledger)
        assert announced(ledger) == []

    def test_an_announced_job_is_taken_once(self, ledger, image_job):
        """Of many io processes one delivers it; the longest announced comes first."""
        for job_id in ("job-1", "job-2"):
            ledger.register(image_job(job_id), priority=6)
            ledger.claim(job_id, 1, worker_id="sdxl@a", lease_s=10, token=job_id)
        assert [ledger.take_ready(wait_s=0.01).job_id for _ in range(2)] == ["job-1", "job-2"]
        assert ledger.take_ready(wait_s=0.01) is None

    def test_what_becomes_due_by_time_is_announced(self, completed_job_ledger, clock):
        """After a pause between two deliveries, and after the lease of a process that died."""
        ledger = completed_job_ledger
        job = ("job-1", "https://example.org/hook")
        assert job in announced(ledger)
        event = ledger.lease_event("job-1", lease_s=30, token="t")
        ledger.postpone(event, due_in_s=60, status=503, error="down")
        assert ledger.announce_due("io@a")
        assert announced(ledger) == []
        clock.advance(61)
        assert ledger.announce_due("io@a")
        assert announced(ledger) == [job]
        assert ledger.lease_event("job-1", lease_s=30, token="dies")
        assert ledger.announce_due("io@a")
        assert announced(ledger) == []
        clock.advance(31)
        assert ledger.announce_due("io@a")
        assert announced(ledger) == [job]

    def test_a_lost_announcement_is_repeated(self, ledger, image_job):
        """A process that dies after it took a job from the list has begun nothing."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        assert ("job-1", None) in announced(ledger)
        assert ledger.announce_due("io@a")
        assert announced(ledger) == [("job-1", None)]

    def test_a_list_of_another_kind_stops_no_job(self, redis_url, image_job):
        """It is a hint: a claim and an end replace it."""
        ledger = Ledger(redis_url)
        with redis.Redis.from_url(redis_url) as client:
            client.set("ourvidz:ready", "text")
            ledger.register(image_job(), priority=6)
            claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
            assert announced(ledger) == [("job-1", None)]
            client.set("ourvidz:ready", "text")
            assert ledger.announce_due("io@a")
            assert announced(ledger) == [("job-1", None)]
        assert claim is not None
        ledger.close()

    def test_the_list_does_not_grow_without_an_io_process(self, ledger, image_job):
        """What is not announced is still due; the list is filled up once somebody takes from it."""
        for number in range(1010):
            ledger.register(image_job(f"job-{number}"), priority=6)
            ledger.claim(f"job-{number}", 1, worker_id="sdxl@a", lease_s=10, token=f"t{number}")
        found = set()
        first = announced(ledger)
        assert len(first) == 1000
        for job_id, _ in first:
            found.add(job_id)
            event = ledger.lease_event(job_id, lease_s=30, token="t")
            ledger.mark_delivered(event, status=200)
        assert ledger.announce_due("io@a")
        assert len(found | {job_id for job_id, _ in announced(ledger)}) == 1010

    def test_a_hanging_receiver_does_not_hide_the_others(self, ledger, clock, image_job):
        """If more jobs are due than are announced at once, other calls announce the rest."""
        for number in range(150):
            ledger.register(image_job(f"job-{number}"), priority=6)
            ledger.claim(f"job-{number}", 1, worker_id="sdxl@a", lease_s=10, token=f"t{number}")
        announced(ledger)
        found = set()
        for _ in range(60):
            clock.advance(0.012347)
            assert ledger.announce_due("io@a")
            taken = announced(ledger)
            assert len(taken) == 100
            found |= set(taken)
        assert len(found) == 150

    def test_a_drained_process_announces_nothing(self, ledger, image_job):
        """An operator has taken it out, and resumes it later."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        announced(ledger)
        ledger.heartbeat(worker("io", id="io@a"))
        ledger.set_draining("io@a", True)
        assert not ledger.announce_due("io@a")
        assert announced(ledger) == []
        ledger.set_draining("io@a", False)
        assert ledger.announce_due("io@a")
        assert announced(ledger) == [("job-1", None)]


class TestNextLease:
    def test_settling_an_event_leases_the_next_one(self, ledger, image_job):
        """One call instead of two; the receiver gets both events over one connection."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        first = ledger.lease_event("job-1", lease_s=30, token="a")
        announced(ledger)
        second = ledger.mark_delivered(first, status=200, then=NextLease(30, "b"))
        assert (second.kind, second.deliveries) == ("completed", 1)
        assert announced(ledger) == []
        assert ledger.due_deliveries() == []
        assert ledger.mark_delivered(second, status=200, then=NextLease(30, "c")) is None

    def test_a_call_that_is_sent_twice_gets_the_same_lease(self, ledger, image_job):
        """The reply of the first may be lost."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        first = ledger.lease_event("job-1", lease_s=30, token="a")
        second = ledger.mark_delivered(first, status=200, then=NextLease(30, "b"))
        assert ledger.mark_delivered(first, status=200, then=NextLease(30, "b")) == second
        assert ledger.counters()["callbacks.delivered"] == 1

    def test_a_dropped_event_leases_the_next_one_too(self, ledger, image_job):
        """A receiver that refuses `processing` gets the terminal event at once."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        first = ledger.lease_event("job-1", lease_s=30, token="a")
        second = ledger.dead_letter(first, status=400, error="no", then=NextLease(30, "b"))
        assert second.kind == "completed"
        assert ledger.dead_letter(second, status=400, error="no", then=NextLease(30, "c")) is None
        assert [event.event_id for event in ledger.list_events("dead")] == [second.event_id]

    def test_an_event_that_is_postponed_or_leased_is_not_leased(self, completed_job_ledger, clock):
        """A delivery that lost its lease must not take the event of the one that has it."""
        ledger = completed_job_ledger
        late = ledger.lease_event("job-1", lease_s=30, token="a")
        clock.advance(31)
        assert ledger.lease_event("job-1", lease_s=30, token="b").deliveries == 2
        assert ledger.dead_letter(late, status=400, error="no", then=NextLease(30, "c")) is None
        assert ledger.next_event("job-1").deliveries == 2


class TestOrder:
    def test_a_claim_and_an_end_add_one_event_each(self, ledger, clock, image_job):
        """`processing` has sequence 1 and the terminal event sequence 2."""
        ledger.register(image_job(callback_url="https://example.org/hook"), priority=6)
        clock.advance(3)
        run_to(ledger)
        first = ledger.next_event("job-1")
        assert (first.kind, first.sequence, first.run, first.attempt) == ("processing", 1, 1, 1)
        assert (first.outcome, first.deliveries, first.state) == (None, 0, "pending")
        ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="t"), status=200)
        last = ledger.next_event("job-1")
        assert (last.kind, last.sequence, last.terminal) == ("completed", 2, True)
        assert last.event_id == event_id(ledger.get("job-1"), 2)
        assert (last.outcome, last.callback_metadata) == (DONE, image_job().callback_metadata())
        assert (last.queued_at, last.claimed_at, last.at) == (clock.time - 3, clock.time, clock.time)
        assert (last.worker_id, last.callback_url) == ("sdxl@a", "https://example.org/hook")

    def test_a_step_with_an_event_adds_it_with_its_progress(self, ledger, image_job):
        """It is ordered between `processing` and the terminal event; a step with a lost fence adds none."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
        ledger.step(claim, progress=25, add_event=True)
        ledger.step(claim, progress=50)
        delivered = deliver_all(ledger)
        assert ledger.end(claim, outcome=DONE)
        assert ledger.step(claim, progress=75, add_event=True) is Verdict.LOST
        delivered += deliver_all(ledger)
        assert delivered == [(1, "processing", None), (2, "processing", 25), (3, "completed", None)]

    def test_undelivered_progress_is_replaced_by_newer_events(self, ledger, image_job):
        """Superseded progress events are deleted, so a slow receiver gets the terminal event sooner."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
        for progress in (25, 50, 75):
            ledger.step(claim, progress=progress, add_event=True)
        pending = {event.metadata.get("progress") for event in ledger.list_events("pending")}
        assert pending == {75, None}
        assert ledger.end(claim, outcome=DONE)
        assert [kind for _, kind, _ in deliver_all(ledger)] == ["processing", "completed"]

    def test_progress_under_delivery_is_kept_until_it_is_settled(self, ledger, clock, image_job):
        """The delivery worker must be able to record its result on the event."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
        ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="p"), status=200)
        ledger.step(claim, progress=25, add_event=True)
        leased = ledger.lease_event("job-1", lease_s=30, token="t")
        ledger.step(claim, progress=50, add_event=True)
        assert ledger.get_event(leased.event_id) == leased
        clock.advance(30)
        ledger.step(claim, progress=75, add_event=True)
        assert ledger.get_event(leased.event_id) is None

    def test_a_new_job_with_the_id_of_a_deleted_job_has_new_event_ids(self, ledger, image_job):
        """A receiver that removes duplicates by event id must not discard the new job's events."""
        ids = []
        for _ in range(2):
            ledger.register(image_job(), priority=6)
            run_to(ledger)
            ids += [event.event_id for event in ledger.list_events("pending")]
            deliver_all(ledger)
            ledger.delete("job-1")
        assert len(set(ids)) == 4

    def test_the_sequence_grows_over_the_whole_life_of_a_job(self, ledger, image_job):
        """A receiver can order the events of all attempts and runs of a job."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        run_to(ledger, outcome=FAILED)
        ledger.reopen("job-1", priority=6)
        run_to(ledger, run=2)
        delivered = []
        while event := ledger.lease_event("job-1", lease_s=30, token=f"t{len(delivered)}"):
            delivered.append((event.sequence, event.run, event.kind, event.attempt))
            ledger.mark_delivered(event, status=200)
        assert delivered == [
            (1, 1, "processing", 1),
            (2, 1, "processing", 2),
            (3, 1, "failed", 2),
            (4, 2, "processing", 1),
            (5, 2, "completed", 1),
        ]

    def test_an_event_keeps_the_data_of_its_run_after_a_later_run(self, ledger, image_job):
        """The callback payload is built from the event alone, not from the current record."""
        ledger.register(image_job(), priority=6)
        run_to(ledger, outcome=FAILED)
        ledger.reopen("job-1", priority=6)
        ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="t"), status=200)
        event = ledger.next_event("job-1")
        assert (event.run, event.kind, event.error.code) == (1, "failed", "OOM_ERROR")
        assert event == ledger.get_event(event.event_id)

    def test_events_of_a_job_are_delivered_in_order(self, ledger, clock, image_job):
        """`completed` is never delivered before `processing`."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        event = ledger.lease_event("job-1", lease_s=30, token="t")
        ledger.postpone(event, due_in_s=60, status=None, error="refused")
        assert ledger.due_deliveries() == []
        assert ledger.lease_event("job-1", lease_s=30, token="t2") is None
        assert ledger.next_event("job-1").kind == "processing"
        clock.advance(60)
        assert ledger.due_deliveries() == ["job-1"]


class TestLeases:
    def test_one_of_many_concurrent_callers_leases_an_event(self, ledger, image_job):
        """An event is delivered by one worker at a time."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)

        def lease(n):
            return ledger.lease_event("job-1", lease_s=30, token=f"t{n}")

        with ThreadPoolExecutor(16) as threads:
            taken = [event for event in threads.map(lease, range(32)) if event]
        assert [event.deliveries for event in taken] == [1]
        assert ledger.due_deliveries() == []

    def test_a_lease_repeated_with_its_token_returns_the_same_event(self, ledger, image_job):
        """A call repeated after a lost reply counts as one delivery attempt."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        assert ledger.lease_event("job-1", lease_s=30, token="t") == ledger.lease_event(
            "job-1", lease_s=30, token="t"
        )
        assert ledger.lease_event("nobody", lease_s=30, token="t") is None

    def test_an_event_is_due_again_after_its_lease_expired(self, ledger, clock, image_job):
        """The event of a delivery worker that died is delivered by another one."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        ledger.lease_event("job-1", lease_s=30, token="t")
        clock.advance(29)
        assert ledger.due_deliveries() == []
        clock.advance(1)
        assert ledger.due_deliveries() == ["job-1"]
        assert ledger.lease_event("job-1", lease_s=30, token="t2").deliveries == 2

    def test_due_jobs_are_listed_by_due_time_without_duplicates(self, ledger, clock, image_job):
        """A job with several pending events is listed once, at the due time of the first."""
        for job_id in ("late", "later"):
            ledger.register(image_job(job_id), priority=6)
            run_to(ledger, job_id)
            clock.advance(1)
        assert ledger.due_deliveries() == ["late", "later"]
        assert ledger.due_deliveries(limit=1) == ["late"]

    def test_an_expired_lease_cannot_postpone_or_dead_letter_an_event(self, completed_job_ledger, clock):
        """Postponing needs the current lease; a successful delivery is recorded under an expired one too."""
        early = completed_job_ledger.lease_event("job-1", lease_s=30, token="a")
        clock.advance(30)
        late = completed_job_ledger.lease_event("job-1", lease_s=30, token="b")
        completed_job_ledger.postpone(early, due_in_s=500, status=500, error="down")
        completed_job_ledger.dead_letter(early, status=400, error="bad")
        assert completed_job_ledger.next_event("job-1") == late
        completed_job_ledger.mark_delivered(early, status=200)
        completed_job_ledger.postpone(late, due_in_s=500, status=500, error="down")
        assert completed_job_ledger.next_event("job-1") is None
        assert completed_job_ledger.get_event(late.event_id).state == "delivered"


class TestSettledEvents:
    def test_a_postponed_event_has_its_last_error(self, completed_job_ledger, clock):
        """Operators see why the last delivery failed."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        completed_job_ledger.postpone(event, due_in_s=7.5, status=503, error="unavailable")
        row = completed_job_ledger.next_event("job-1")
        assert (row.due_at, row.last_status, row.last_error) == (clock.time + 7.5, 503, "unavailable")
        assert (row.deliveries, row.state) == (1, "pending")
        assert completed_job_ledger.counters()["callbacks.retried"] == 1

    def test_a_delivered_event_is_kept_for_a_day(self, completed_job_ledger, clock):
        """Operators can list delivered events for a day; then they are deleted."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        completed_job_ledger.mark_delivered(event, status=204)
        completed_job_ledger.mark_delivered(event, status=204)
        row = completed_job_ledger.get_event(event.event_id)
        assert (row.state, row.settled_at, row.last_status) == ("delivered", clock.time, 204)
        assert [each.event_id for each in completed_job_ledger.list_events("delivered")] == [event.event_id]
        assert (completed_job_ledger.list_events("pending"), completed_job_ledger.due_deliveries()) == (
            [],
            [],
        )
        assert completed_job_ledger.counters()["callbacks.delivered"] == 2
        clock.advance(86400)
        completed_job_ledger.purge(older_than_s=1e9)
        assert completed_job_ledger.list_events("delivered") == []
        assert completed_job_ledger.get_event(event.event_id) is None

    def test_a_processing_event_gets_one_delivery_attempt(self, ledger, image_job):
        """An undelivered `processing` event is not retried and does not block later events."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        event = ledger.lease_event("job-1", lease_s=30, token="t")
        ledger.dead_letter(event, status=None, error="refused")
        assert ledger.get_event(event.event_id) is None
        assert ledger.list_events("dead") == []
        assert ledger.next_event("job-1").kind == "completed"
        assert ledger.due_deliveries() == ["job-1"]
        assert "callbacks.dead" not in ledger.counters()

    def test_a_dead_letter_is_kept_with_its_error(self, completed_job_ledger, clock):
        """Operators can read the HTTP status and the error of the last attempt."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        completed_job_ledger.dead_letter(event, status=400, error="not understood")
        completed_job_ledger.dead_letter(event, status=400, error="not understood")
        (letter,) = completed_job_ledger.list_events("dead")
        assert (letter.event_id, letter.state) == (event.event_id, "dead")
        assert (letter.last_status, letter.last_error, letter.settled_at) == (
            400,
            "not understood",
            clock.time,
        )
        assert completed_job_ledger.counters()["callbacks.dead"] == 1
        assert completed_job_ledger.due_deliveries() == []

    def test_the_newest_dead_letters_come_first(self, ledger, clock, image_job):
        """Dead letters are listed by the time at which they were given up."""
        for n in range(3):
            ledger.register(image_job(f"j{n}"), priority=6)
            run_to(ledger, f"j{n}")
            while event := ledger.lease_event(f"j{n}", lease_s=30, token="t"):
                ledger.dead_letter(event, status=400, error="no")
            clock.advance(1)
        assert [each.job_id for each in ledger.list_events("dead")] == ["j2", "j1", "j0"]
        assert [each.job_id for each in ledger.list_events("dead", limit=1)] == ["j2"]


class TestReplay:
    @pytest.mark.parametrize("end", ["dead", "delivered"])
    def test_a_replayed_event_is_pending_again_with_no_delivery_attempts(
        self, completed_job_ledger, clock, end
    ):
        """A replay keeps the event id and resets the number of attempts."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        if end == "dead":
            completed_job_ledger.dead_letter(event, status=400, error="no")
        else:
            completed_job_ledger.mark_delivered(event, status=200)
        clock.advance(9)
        row = completed_job_ledger.replay(event.event_id)
        assert (row.event_id, row.state, row.deliveries) == (event.event_id, "pending", 0)
        assert (row.due_at, row.settled_at) == (clock.time, None)
        assert completed_job_ledger.list_events(end) == []
        assert completed_job_ledger.due_deliveries() == ["job-1"]
        assert completed_job_ledger.lease_event("job-1", lease_s=30, token="t2").deliveries == 1

    def test_replaying_a_pending_event_changes_nothing(self, completed_job_ledger):
        """Replay is idempotent."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        assert completed_job_ledger.replay(event.event_id) == event

    def test_a_replayed_event_waits_for_a_delivery_in_progress(self, ledger, clock, image_job):
        """A replay never starts a second concurrent delivery of a job."""
        ledger.register(image_job(), priority=6)
        run_to(ledger, outcome=FAILED)
        for token in ("a", "b"):
            dead_letter = ledger.lease_event("job-1", lease_s=30, token=token)
            ledger.dead_letter(dead_letter, status=400, error="no")
        ledger.reopen("job-1", priority=6)
        run_to(ledger, run=2)
        ledger.lease_event("job-1", lease_s=30, token="c")
        assert ledger.replay(dead_letter.event_id).due_at == clock.time + 30
        assert ledger.due_deliveries() == []

    def test_replaying_an_unknown_event_is_not_found(self, ledger):
        """`replay` raises `NotFound`."""
        with pytest.raises(NotFound):
            ledger.replay("msg_0")
        assert ledger.get_event("msg_0") is None
