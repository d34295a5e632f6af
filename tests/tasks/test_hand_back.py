"""What a worker that shuts down does with the jobs it holds."""

from __future__ import annotations

from ourvidz import dispatch
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.testing import Eager


def test_an_answer_that_is_being_read_ends_with_a_clean_shutdown_too(ourvidz_eager: Eager) -> None:
    """Its caller has the beginning: another attempt would say it again."""
    ledger = ourvidz_eager.control.ledger
    asked = (Message(role="user", content="What is a hill?"),)
    job = ChatJob(
        id="a",
        type="chat_conversation",
        expected_time=5,
        messages=asked,
        max_tokens=9,
        seed=1,
        stream=True,
    )
    ledger.register(job, priority=0, quiet=True)
    claim = ledger.claim("a", 1, worker_id="chat@here", lease_s=10, token="t")
    assert claim is not None
    ledger.step(claim, items=[("token", {"text": "A hill"})])
    assert dispatch.hand_back("chat@here") == []
    record = ourvidz_eager.record("a")
    assert record.status == "failed"
    assert record.outcome is not None
    assert record.outcome.error is not None
    assert record.outcome.error.code == "WORKER_LOST"
    assert ourvidz_eager.callbacks.of("a") == []
