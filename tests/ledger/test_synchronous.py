"""Jobs with suppressed callbacks, and one-shot streamed answers."""

from __future__ import annotations

import pytest

from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim

TOKEN = [("token", {"text": "a "})]


def claim_job(ledger: Ledger, token: str = "t1", run: int = 1) -> Claim:
    """Claim `chat-1`. Fails the test if the claim is refused."""
    claim = ledger.claim("chat-1", run, worker_id="chat@a", lease_s=10, token=token)
    assert claim is not None
    return claim


def end_claim(ledger: Ledger, claim: Claim, status: str = "completed") -> None:
    outcome = Outcome(status=status)
    assert ledger.end(claim, outcome=outcome)


class TestSuppressedCallbacks:
    @pytest.mark.parametrize("suppressed", [False, True])
    def test_only_a_job_with_suppressed_callbacks_has_no_outbox_rows(self, ledger, chat_job, suppressed):
        """A synchronous request gets its result in the response, so no callback is sent."""
        assert (
            ledger.register(chat_job(), priority=0, suppress_callbacks=suppressed).record.suppress_callbacks
            is suppressed
        )
        claim = claim_job(ledger)
        ledger.step(claim, progress=10, add_event=True)
        end_claim(ledger, claim)
        assert ledger.get("chat-1").suppress_callbacks is suppressed
        assert (ledger.next_event("chat-1") is None) is suppressed
        assert (ledger.due_deliveries() == []) is suppressed
        assert (ledger.list_events("pending") == []) is suppressed

    def test_the_event_stream_is_complete_without_callbacks(self, ledger, chat_job):
        """HTTP callers read the progress and the result from the stream."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        claim = claim_job(ledger)
        ledger.step(claim, progress=10, items=TOKEN)
        end_claim(ledger, claim)
        kinds = [item.kind for item in ledger.stream("chat-1")]
        assert kinds == ["state", "state", "token", "progress", "done"]
        assert ledger.counters()["jobs.chat_conversation.completed"] == 1

    def test_callbacks_stay_suppressed_in_the_next_run(self, ledger, chat_job):
        """An operator's retry of a synchronous job sends no callback either."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        end_claim(ledger, claim_job(ledger), "failed")
        assert ledger.reopen("chat-1", priority=6).suppress_callbacks
        end_claim(ledger, claim_job(ledger, "t2", run=2), "failed")
        assert ledger.next_event("chat-1") is None

    def test_a_job_without_callbacks_can_be_deleted_at_once(self, ledger, chat_job):
        """There is no undelivered terminal callback that would prevent it."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        end_claim(ledger, claim_job(ledger))
        ledger.delete("chat-1")
        assert ledger.get("chat-1") is None

    def test_a_job_without_callbacks_is_purged_after_the_retention_period(self, ledger, clock, chat_job):
        """Retention applies to synchronous jobs as well."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        end_claim(ledger, claim_job(ledger))
        clock.advance(100)
        assert ledger.purge(older_than_s=50) == 1
        assert ledger.get("chat-1") is None


class TestStreaming:
    def test_a_one_shot_answer_cannot_be_repeated_after_its_first_token(self, ledger, chat_job):
        """The caller has received the tokens already; a second attempt would send them twice."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claim_job(ledger)
        ledger.step(claim, progress=1)
        assert ledger.get("chat-1").repeatable
        ledger.step(claim, items=TOKEN)
        record = ledger.get("chat-1")
        assert (record.one_shot, record.streamed, record.repeatable) == (True, True, False)

    def test_an_answer_that_is_not_streamed_to_its_caller_can_be_repeated(self, ledger, chat_job):
        """The event stream marks the start of each attempt, so its readers can discard earlier tokens."""
        ledger.register(chat_job(), priority=0)
        ledger.step(claim_job(ledger), items=TOKEN)
        record = ledger.get("chat-1")
        assert (record.one_shot, record.streamed, record.repeatable) == (False, True, True)
        assert ledger.rescue(record)

    def test_a_one_shot_answer_is_not_queued_again_when_its_worker_is_lost(self, ledger, chat_job):
        """`rescue` checks this itself, since a token may arrive after the sweep has read the record."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claim_job(ledger)
        ledger.step(claim, items=TOKEN)
        assert not ledger.rescue(claim)
        assert not ledger.rescue(claim, counted=False)
        assert ledger.get("chat-1").status == "processing"

    def test_tokens_of_an_earlier_attempt_still_count(self, ledger, chat_job):
        """The caller has received tokens since the first attempt."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claim_job(ledger)
        ledger.step(claim, items=TOKEN)
        ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        assert not claim_job(ledger, "t2").record.repeatable

    def test_tokens_of_an_earlier_run_do_not_count(self, ledger, chat_job):
        """The next run has a caller of its own and can be repeated until it streams."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claim_job(ledger)
        ledger.step(claim, items=TOKEN)
        end_claim(ledger, claim, "failed")
        record = ledger.reopen("chat-1", priority=6)
        assert (record.one_shot, record.streamed, record.repeatable) == (True, False, True)
