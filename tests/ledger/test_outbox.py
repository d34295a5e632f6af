"""The callback outbox: order, leases, retries, dead letters and replay."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from ourvidz.errors import NotFound, OutOfMemory
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Verdict, event_id

DONE = Outcome(status="completed", metadata={"seed": 7})
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def run_to(ledger, job_id="job-1", outcome=DONE, run=1):
    """Claim a job and end it."""
    claim = ledger.claim(job_id, run, worker_id="sdxl@a", lease_s=10, token=f"{job_id}-{run}")
    assert ledger.end(job_id, run=run, fence=claim.fence, outcome=outcome, worker_id="sdxl@a")


def drained(ledger):
    """Deliver what is due of the job: sequence, kind and progress of each row."""
    delivered = []
    while event := ledger.lease_event("job-1", lease_s=30, token=uuid4().hex):
        delivered.append((event.sequence, event.kind, event.metadata.get("progress")))
        ledger.mark_delivered(event, status=200)
    return delivered


@pytest.fixture
def completed_job_ledger(ledger, image_job):
    """A ledger with one completed job whose processing row went out: its terminal row is the head."""
    ledger.register(image_job(callback_url="https://example.org/hook"), priority=6)
    run_to(ledger)
    ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="p"), status=200)
    return ledger


class TestOrder:
    def test_a_won_claim_and_an_end_make_one_row_each(self, ledger, clock, image_job):
        """One `processing`, then exactly one terminal event, numbered on."""
        ledger.register(image_job(callback_url="https://example.org/hook"), priority=6)
        clock.pass_s(3)
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

    def test_a_step_that_tells_makes_a_row_with_its_progress(self, ledger, image_job):
        """It stands between `processing` and the ending, and a lost fence makes none."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
        ledger.step(claim, progress=25, add_event=True)
        ledger.step(claim, progress=50)
        delivered = drained(ledger)
        assert ledger.end("job-1", run=1, fence=claim.fence, outcome=DONE)
        assert ledger.step(claim, progress=75, add_event=True) is Verdict.LOST
        delivered += drained(ledger)
        assert delivered == [(1, "processing", None), (2, "processing", 25), (3, "completed", None)]

    def test_progress_that_did_not_go_out_makes_room_for_newer_and_for_the_ending(self, ledger, image_job):
        """Superseded progress events are dropped, so a slow receiver gets the terminal event sooner."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
        for progress in (25, 50, 75):
            ledger.step(claim, progress=progress, add_event=True)
        pending = {event.metadata.get("progress") for event in ledger.list_events("pending")}
        assert pending == {75, None}
        assert ledger.end("job-1", run=1, fence=claim.fence, outcome=DONE)
        assert [kind for _, kind, _ in drained(ledger)] == ["processing", "completed"]

    def test_progress_that_is_being_delivered_stays_until_it_is_settled(self, ledger, clock, image_job):
        """Its delivery would otherwise end at an event that no longer exists."""
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="sdxl@a", lease_s=10, token="a")
        ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="p"), status=200)
        ledger.step(claim, progress=25, add_event=True)
        leased = ledger.lease_event("job-1", lease_s=30, token="t")
        ledger.step(claim, progress=50, add_event=True)
        assert ledger.get_event(leased.event_id) == leased
        clock.pass_s(30)
        ledger.step(claim, progress=75, add_event=True)
        assert ledger.get_event(leased.event_id) is None

    def test_a_new_job_under_a_deleted_ones_id_has_event_ids_of_its_own(self, ledger, image_job):
        """A receiver that drops what it has seen must not drop the new job's ending."""
        ids = []
        for _ in range(2):
            ledger.register(image_job(), priority=6)
            run_to(ledger)
            ids += [event.event_id for event in ledger.list_events("pending")]
            drained(ledger)
            ledger.delete("job-1")
        assert len(set(ids)) == 4

    def test_the_sequence_grows_over_the_whole_life_of_a_job(self, ledger, image_job):
        """A receiver can tell the later of two events, over attempts and retries."""
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

    def test_a_row_tells_of_its_own_run_even_after_a_later_one(self, ledger, image_job):
        """A payload is built from the row alone."""
        ledger.register(image_job(), priority=6)
        run_to(ledger, outcome=FAILED)
        ledger.reopen("job-1", priority=6)
        ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="t"), status=200)
        event = ledger.next_event("job-1")
        assert (event.run, event.kind, event.error.code) == (1, "failed", "OOM_ERROR")
        assert event == ledger.get_event(event.event_id)

    def test_a_later_row_waits_for_the_earlier_one(self, ledger, clock, image_job):
        """`completed` must not arrive before `processing`."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        event = ledger.lease_event("job-1", lease_s=30, token="t")
        ledger.postpone(event, due_in_s=60, status=None, error="refused")
        assert ledger.due_deliveries() == []
        assert ledger.lease_event("job-1", lease_s=30, token="t2") is None
        assert ledger.next_event("job-1").kind == "processing"
        clock.pass_s(60)
        assert ledger.due_deliveries() == ["job-1"]


class TestTaking:
    def test_one_of_many_takes_a_row(self, ledger, image_job):
        """A callback is delivered by one worker at a time."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)

        def try_it(n):
            return ledger.lease_event("job-1", lease_s=30, token=f"t{n}")

        with ThreadPoolExecutor(16) as threads:
            taken = [event for event in threads.map(try_it, range(32)) if event]
        assert [event.deliveries for event in taken] == [1]
        assert ledger.due_deliveries() == []

    def test_the_same_token_takes_the_same_row_again(self, ledger, image_job):
        """An answer lost on the wire must not count as a delivery."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        assert ledger.lease_event("job-1", lease_s=30, token="t") == ledger.lease_event(
            "job-1", lease_s=30, token="t"
        )
        assert ledger.lease_event("nobody", lease_s=30, token="t") is None

    def test_a_row_whose_taker_died_is_due_again(self, ledger, clock, image_job):
        """Delivery workers are killed too."""
        ledger.register(image_job(), priority=6)
        run_to(ledger)
        ledger.lease_event("job-1", lease_s=30, token="t")
        clock.pass_s(29)
        assert ledger.due_deliveries() == []
        clock.pass_s(1)
        assert ledger.due_deliveries() == ["job-1"]
        assert ledger.lease_event("job-1", lease_s=30, token="t2").deliveries == 2

    def test_the_most_overdue_come_first_and_each_job_once(self, ledger, clock, image_job):
        """`due_deliveries` lists job ids by due time, without duplicates."""
        for job_id in ("late", "later"):
            ledger.register(image_job(job_id), priority=6)
            run_to(ledger, job_id)
            clock.pass_s(1)
        assert ledger.due_deliveries() == ["late", "later"]
        assert ledger.due_deliveries(limit=1) == ["late"]

    def test_an_expired_lease_cannot_postpone_or_dead_letter_a_row(self, completed_job_ledger, clock):
        """Only the current lease may postpone or dead-letter; a success counts from either lease."""
        early = completed_job_ledger.lease_event("job-1", lease_s=30, token="a")
        clock.pass_s(30)
        late = completed_job_ledger.lease_event("job-1", lease_s=30, token="b")
        completed_job_ledger.postpone(early, due_in_s=500, status=500, error="down")
        completed_job_ledger.dead_letter(early, status=400, error="bad")
        assert completed_job_ledger.next_event("job-1") == late
        completed_job_ledger.mark_delivered(early, status=200)
        completed_job_ledger.postpone(late, due_in_s=500, status=500, error="down")
        assert completed_job_ledger.next_event("job-1") is None
        assert completed_job_ledger.get_event(late.event_id).state == "delivered"


class TestSettling:
    def test_a_postponed_row_remembers_why(self, completed_job_ledger, clock):
        """The operator reads the last error."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        completed_job_ledger.postpone(event, due_in_s=7.5, status=503, error="unavailable")
        row = completed_job_ledger.next_event("job-1")
        assert (row.due_at, row.last_status, row.last_error) == (clock.time + 7.5, 503, "unavailable")
        assert (row.deliveries, row.state) == (1, "pending")
        assert completed_job_ledger.counters()["callbacks.retried"] == 1

    def test_a_delivered_row_is_kept_a_day(self, completed_job_ledger, clock):
        """Operators look back, but not forever."""
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
        clock.pass_s(86400)
        completed_job_ledger.purge(older_than_s=1e9)
        assert completed_job_ledger.list_events("delivered") == []
        assert completed_job_ledger.get_event(event.event_id) is None

    def test_a_processing_row_gets_one_attempt(self, ledger, image_job):
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

    def test_a_dead_lettered_row_is_kept_with_its_error(self, completed_job_ledger, clock):
        """An operator can read the status and the error."""
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
        """What died just now is what an operator looks for."""
        for n in range(3):
            ledger.register(image_job(f"j{n}"), priority=6)
            run_to(ledger, f"j{n}")
            while event := ledger.lease_event(f"j{n}", lease_s=30, token="t"):
                ledger.dead_letter(event, status=400, error="no")
            clock.pass_s(1)
        assert [each.job_id for each in ledger.list_events("dead")] == ["j2", "j1", "j0"]
        assert [each.job_id for each in ledger.list_events("dead", limit=1)] == ["j2"]


class TestReplaying:
    @pytest.mark.parametrize("end", ["dead", "delivered"])
    def test_a_settled_row_goes_out_again_from_zero(self, completed_job_ledger, clock, end):
        """A replay keeps the event id and resets the delivery count."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        if end == "dead":
            completed_job_ledger.dead_letter(event, status=400, error="no")
        else:
            completed_job_ledger.mark_delivered(event, status=200)
        clock.pass_s(9)
        row = completed_job_ledger.replay(event.event_id)
        assert (row.event_id, row.state, row.deliveries) == (event.event_id, "pending", 0)
        assert (row.due_at, row.settled_at) == (clock.time, None)
        assert completed_job_ledger.list_events(end) == []
        assert completed_job_ledger.due_deliveries() == ["job-1"]
        assert completed_job_ledger.lease_event("job-1", lease_s=30, token="t2").deliveries == 1

    def test_a_pending_row_is_left_alone(self, completed_job_ledger):
        """Replaying twice is replaying once."""
        event = completed_job_ledger.lease_event("job-1", lease_s=30, token="t")
        assert completed_job_ledger.replay(event.event_id) == event

    def test_a_replayed_row_waits_for_the_delivery_that_is_under_way(self, ledger, clock, image_job):
        """One delivery of a job at a time, whatever an operator does."""
        ledger.register(image_job(), priority=6)
        run_to(ledger, outcome=FAILED)
        for token in ("a", "b"):
            buried = ledger.lease_event("job-1", lease_s=30, token=token)
            ledger.dead_letter(buried, status=400, error="no")
        ledger.reopen("job-1", priority=6)
        run_to(ledger, run=2)
        ledger.lease_event("job-1", lease_s=30, token="c")
        assert ledger.replay(buried.event_id).due_at == clock.time + 30
        assert ledger.due_deliveries() == []

    def test_nothing_is_replayed_that_is_not_there(self, ledger):
        """A typo is not a success."""
        with pytest.raises(NotFound):
            ledger.replay("msg_0")
        assert ledger.get_event("msg_0") is None
