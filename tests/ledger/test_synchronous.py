"""Jobs with suppressed callbacks, and one-shot streamed answers."""

from __future__ import annotations

import pytest

from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim
from ourvidz.ledger.store import Ledger

TOKEN = [("token", {"text": "a "})]


def claimed(ledger: Ledger, token: str = "t1", run: int = 1) -> Claim:
    """A claim that must be won."""
    claim = ledger.claim("chat-1", run, worker_id="chat@a", lease_s=10, token=token)
    assert claim is not None
    return claim


def ended(ledger: Ledger, claim: Claim, status: str = "completed") -> None:
    outcome = Outcome(status=status)
    assert ledger.end("chat-1", run=claim.run, fence=claim.fence, outcome=outcome)


class TestQuiet:
    @pytest.mark.parametrize("suppressed", [False, True])
    def test_only_a_job_with_suppressed_callbacks_has_no_outbox_rows(self, ledger, chat_job, suppressed):
        """A synchronous request gets its result in the response, so no callback is sent."""
        assert (
            ledger.register(chat_job(), priority=0, suppress_callbacks=suppressed).record.suppress_callbacks
            is suppressed
        )
        claim = claimed(ledger)
        ledger.step(claim, progress=10, add_event=True)
        ended(ledger, claim)
        assert ledger.get("chat-1").suppress_callbacks is suppressed
        assert (ledger.next_event("chat-1") is None) is suppressed
        assert (ledger.due_deliveries() == []) is suppressed
        assert (ledger.list_events("pending") == []) is suppressed

    def test_its_stream_tells_everything(self, ledger, chat_job):
        """Who asks over HTTP reads the job there."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        claim = claimed(ledger)
        ledger.step(claim, progress=10, items=TOKEN)
        ended(ledger, claim)
        kinds = [item.kind for item in ledger.stream("chat-1")]
        assert kinds == ["state", "state", "token", "progress", "done"]
        assert ledger.counters()["jobs.chat_conversation.completed"] == 1

    def test_its_callbacks_stay_suppressed_in_the_next_run(self, ledger, chat_job):
        """An operator's retry has no receiver either."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        ended(ledger, claimed(ledger), "failed")
        assert ledger.reopen("chat-1", priority=6).suppress_callbacks
        ended(ledger, claimed(ledger, "t2", run=2), "failed")
        assert ledger.next_event("chat-1") is None

    def test_it_can_be_deleted_at_once(self, ledger, chat_job):
        """No callback is on its way that would have to be waited for."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        ended(ledger, claimed(ledger))
        ledger.delete("chat-1")
        assert ledger.get("chat-1") is None

    def test_it_is_purged_when_it_is_old(self, ledger, clock, chat_job):
        """Retention applies to synchronous jobs too."""
        ledger.register(chat_job(), priority=0, suppress_callbacks=True)
        ended(ledger, claimed(ledger))
        clock.pass_s(100)
        assert ledger.purge(older_than_s=50) == 1
        assert ledger.get("chat-1") is None


class TestStreaming:
    def test_a_streamed_token_makes_a_one_shot_answer_unrepeatable(self, ledger, chat_job):
        """Streamed tokens cannot be withdrawn; a second attempt would repeat them."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claimed(ledger)
        ledger.step(claim, progress=1)
        assert ledger.get("chat-1").repeatable
        ledger.step(claim, items=TOKEN)
        record = ledger.get("chat-1")
        assert (record.one_shot, record.streamed, record.repeatable) == (True, True, False)

    def test_a_caller_who_waits_for_the_whole_answer_gets_another_attempt(self, ledger, chat_job):
        """Followers of a job's events see where an attempt begins anew."""
        ledger.register(chat_job(), priority=0)
        ledger.step(claimed(ledger), items=TOKEN)
        record = ledger.get("chat-1")
        assert (record.one_shot, record.streamed, record.repeatable) == (False, True, True)
        assert ledger.rescue("chat-1", fence=record.fence)

    def test_it_is_not_queued_again_when_its_worker_is_lost(self, ledger, chat_job):
        """Not even when the token came between the sweep's look and its verdict."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claimed(ledger)
        ledger.step(claim, items=TOKEN)
        assert not ledger.rescue("chat-1", fence=claim.fence)
        assert not ledger.rescue("chat-1", fence=claim.fence, counted=False)
        assert ledger.get("chat-1").status == "processing"

    def test_what_an_earlier_attempt_streamed_still_counts(self, ledger, chat_job):
        """The caller has been reading since the first attempt."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claimed(ledger)
        ledger.step(claim, items=TOKEN)
        ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        assert not claimed(ledger, "t2").record.repeatable

    def test_the_next_run_starts_afresh(self, ledger, chat_job):
        """Streamed tokens of an earlier run do not count."""
        ledger.register(chat_job(stream=True), priority=0)
        claim = claimed(ledger)
        ledger.step(claim, items=TOKEN)
        ended(ledger, claim, "failed")
        record = ledger.reopen("chat-1", priority=6)
        assert (record.one_shot, record.streamed, record.repeatable) == (True, False, True)
