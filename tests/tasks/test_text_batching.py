"""One running task, several jobs: who is taken along, and how each of them ends."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals as celery_signals

from ourvidz import dispatch
from ourvidz.errors import (
    InternalError,
    InvalidParameters,
    ModelLoadError,
    OutOfMemory,
    WorkerLost,
    WorkerUnavailable,
)
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim, Record, Worker
from ourvidz.tasks.attempt import services
from ourvidz.tasks.text_batching import ClaimedCompany, ClaimedTurn
from ourvidz.testing import Eager
from ourvidz.workflows.chat import converse

WORKER = "chat@here-cpu"
DONE = Outcome(status="completed")


@pytest.fixture
def queued(ourvidz_eager: Eager) -> Callable[..., Record]:
    """Write a text job down without publishing it: it waits."""

    def register(name: str, *, priority: int = 6, **changed: Any) -> Record:
        payload = {"id": name, "type": "chat_conversation", "prompt": f"a fox named {name}", "max_tokens": 8}
        job = dispatch.parse_payload(payload | changed)
        return ourvidz_eager.control.ledger.register(job, priority=priority).record

    return register


@pytest.fixture
def led(ourvidz_eager: Eager) -> Callable[..., ClaimedCompany]:
    """Claim a job as a running task does, ready to take others along."""

    def lead(name: str, *, limit: int = 8) -> ClaimedCompany:
        return ClaimedCompany(claimed(ourvidz_eager, name), "chat", limit=limit, eager=False)

    return lead


def claimed(eager: Eager, name: str) -> Claim:
    claim = eager.control.ledger.claim(name, 1, worker_id=WORKER, lease_s=10, token=uuid.uuid4().hex)
    assert claim is not None
    return claim


def join(company: ClaimedCompany, present: int = 1) -> list[ClaimedTurn]:
    """Who joins now."""
    return company.joining(company.first.job, present=present)


def names(turns: list[ClaimedTurn]) -> list[str]:
    return [turn.job.id for turn in turns]


def close(*turns: ClaimedTurn) -> None:
    """End them all, so that their leases are let go of."""
    for turn in turns:
        turn.end(DONE)


def test_waiting_jobs_join_in_the_order_in_which_they_would_have_started(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """Decoding together must not change who comes first."""
    for name in ("a", "b", "c"):
        queued(name)
    queued("urgent", priority=0)
    company = led("a", limit=3)
    joined = join(company)
    assert names(joined) == ["urgent", "b"]
    assert ourvidz_eager.record("urgent").worker_id == WORKER
    assert ourvidz_eager.record("c").status == "queued"
    close(company.first, *joined)


def test_a_batch_that_has_run_empty_looks_once_more(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came since the last look starts now, in order, and not when its own message comes."""
    monkeypatch.setattr("ourvidz.tasks.text_batching.LOOK_EVERY_S", 60.0)
    queued("a")
    company = led("a")
    assert join(company) == []
    queued("b")
    assert join(company) == []
    joined = join(company, present=0)
    assert names(joined) == ["b"]
    close(company.first, *joined)


def test_a_full_batch_takes_nobody(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """The limit is the operator's."""
    queued("a"), queued("b")
    company = led("a", limit=1)
    assert join(company) == []
    assert ourvidz_eager.record("b").status == "queued"
    close(company.first)


def test_nobody_overtakes_a_job_that_does_not_fit(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany]
) -> None:
    """A request for the other model would wait for ever behind a busy batch."""
    queued("a"), queued("other", model="qwen_base"), queued("b")
    company = led("a")
    assert join(company) == []
    queued("urgent", priority=0)
    assert join(company) == [], "the next message decides from now on"
    close(company.first)


def test_a_cancelled_job_is_not_taken_along(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """And does not hold up those behind it."""
    queued("a"), queued("b"), queued("c")
    ourvidz_eager.control.ledger.request_cancel("b")
    company = led("a")
    joined = join(company)
    assert names(joined) == ["c"]
    close(company.first, *joined)


def test_a_paused_queue_gives_nobody_away(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """What an operator has stopped stays stopped."""
    queued("a"), queued("b")
    company = led("a")
    ourvidz_eager.control.ledger.set_paused("chat_queue", True)
    assert join(company) == []
    close(company.first)


@pytest.mark.parametrize("trouble", [WorkerUnavailable("the job store is away"), ValueError("no document")])
def test_a_ledger_in_trouble_is_not_asked_again(
    queued: Callable[..., Record],
    led: Callable[..., ClaimedCompany],
    ourvidz_eager: Eager,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
) -> None:
    """Each look would hold the texts up for seconds, or end them for a neighbour that cannot be read."""
    queued("a"), queued("b")
    company = led("a")
    asked = []

    def away(job_id: str) -> ChatJob:
        asked.append(job_id)
        raise trouble

    monkeypatch.setattr(ourvidz_eager.control.ledger, "job", away)
    monkeypatch.setattr("ourvidz.tasks.text_batching.LOOK_EVERY_S", 0.0)
    assert join(company) == join(company) == []
    assert asked == ["b"]
    close(company.first)


def test_a_worker_that_is_told_to_stop_takes_nobody_along(
    queued: Callable[..., Record],
    led: Callable[..., ClaimedCompany],
    ourvidz_eager: Eager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under a steady load it would lead for another half minute, and be killed in the middle of texts."""
    queued("a"), queued("b")
    company = led("a")
    ourvidz_eager.control.ledger.heartbeat(
        Worker(
            id=WORKER,
            family="chat",
            queue="chat_queue",
            host="here",
            pid=1,
            gpu=None,
            state="busy",
            models=("chat",),
            version="1",
            started_at=0.0,
            seen_at=0.0,
        )
    )
    monkeypatch.setattr("ourvidz.signals.settings", lambda: SimpleNamespace(worker="chat"))
    celery_signals.worker_shutting_down.send(sender=WORKER, sig="SIGTERM", how="Warm", exitcode=0)
    for thread in threading.enumerate():
        if thread.name == "drain":
            thread.join()
    assert join(company) == []
    close(company.first)


def test_each_job_is_told_of_as_if_it_had_run_alone(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """A real batch: one `processing` and one ending for each, with its own text."""
    for name in ("a", "b", "c"):
        queued(name)
    company = led("a")
    converse(company.first, company, services("chat"))
    for name in ("a", "b", "c"):
        record = ourvidz_eager.record(name)
        assert (record.status, record.attempt) == ("completed", 1)
        assert record.outcome is not None
        assert record.outcome.assets[0].metadata["text"]
    assert [ourvidz_eager.callbacks.statuses(name)[-1] for name in ("a", "b", "c")] == ["completed"] * 3
    assert ourvidz_eager.callbacks.statuses("b") == ["processing", "completed"]


def test_a_failure_of_the_whole_batch_fails_what_is_still_open(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """What is finished stays finished."""
    queued("a"), queued("b")
    company = led("a")
    (second,) = join(company)
    second.end(DONE)
    company.fail(RuntimeError("a secret path /home/x"))
    assert ourvidz_eager.record("b").status == "completed"
    failed = ourvidz_eager.record("a")
    assert failed.outcome is not None
    assert failed.outcome.error is not None
    assert (failed.status, failed.outcome.error.code) == ("failed", InternalError.code)
    assert "/home" not in failed.outcome.error.message


def test_a_job_that_ran_out_of_memory_runs_again_and_alone(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """In company it would fail the same way."""
    queued("a"), queued("b")
    company = led("a")
    (second,) = join(company)
    ledger = ourvidz_eager.control.ledger
    assert ledger.release(second._attempt.claim, code=OutOfMemory.code, due_in_s=0)
    assert join(company) == []
    alone = led("b")
    queued("c")
    assert join(alone) == []
    close(company.first, alone.first)
    second.fail(OutOfMemory("late"))
    assert ourvidz_eager.record("b").status == "completed"


def test_an_enhancement_without_a_model_is_the_original_prompt(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """After the last attempt. A failure would stop a caller who can go on with what was sent; one whose
    request was wrong has to hear so."""
    ledger = ourvidz_eager.control.ledger
    queued("a", type="chat_enhance", prompt="a red fox")
    company = led("a")
    assert ledger.release(company.first._attempt.claim, code=ModelLoadError.code, due_in_s=0)
    again = led("a")
    again.fail(ModelLoadError("no weights in /home/x"))
    record = ourvidz_eager.record("a")
    assert record.outcome is not None
    assert (record.status, record.outcome.enhanced_prompt) == ("completed", "a red fox")
    assert record.outcome.metadata["enhancement_strategy"] == "fallback"
    close(company.first)
    queued("b", type="chat_enhance")
    led("b").fail(InvalidParameters("too long"))
    assert ourvidz_eager.record("b").status == "failed"


def test_what_a_reader_has_begun_to_read_is_not_answered_again(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """Words that are out cannot be taken back."""
    queued("a", stream=True)
    company = led("a")
    company.first.run.say("Once", 1, 8)
    company.first.fail(OutOfMemory("no room"))
    record = ourvidz_eager.record("a")
    assert (record.status, record.attempt) == ("failed", 1)
    assert isinstance(ourvidz_eager.control.ledger.job("a"), ChatJob)


def test_a_lost_job_is_left_to_whoever_has_it(
    queued: Callable[..., Record], led: Callable[..., ClaimedCompany], ourvidz_eager: Eager
) -> None:
    """An answer that comes too late changes nothing."""
    queued("a")
    company = led("a")
    assert ourvidz_eager.control.ledger.rescue("a", fence=ourvidz_eager.record("a").fence)
    company.first.end(DONE)
    assert company.first.ending == "lost"
    record = ourvidz_eager.record("a")
    assert (record.status, record.failures) == ("queued", {WorkerLost.code: 1})
