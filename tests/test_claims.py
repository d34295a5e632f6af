"""Claims: which job a task runs, and how its claim is passed from the signal handler to the task body."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from celery.app.task import Context

from ourvidz import claims, dispatch
from ourvidz.errors import Conflict, OutOfMemory, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.testing import Eager
from tests.factories import chat_job, image_job

WORKER = "chat@host-gpu0"
TEXT_TASK, IMAGE_TASK = "ourvidz.chat.generate", "ourvidz.sdxl.generate"
DONE = Outcome(status="completed")
Register = Callable[..., Record]


def request(task: str = TEXT_TASK) -> Context:
    """The Celery request of a task that a worker has received."""
    return Context(task=task, hostname=WORKER, is_eager=False)


@pytest.fixture
def ledger(ourvidz_eager: Eager) -> Ledger:
    return ourvidz_eager.control.ledger


@pytest.fixture
def register(ledger: Ledger) -> Register:
    """Record a text job without publishing it."""
    return lambda job_id: ledger.register(chat_job(job_id=job_id), priority=6).record


def started_by(record: Record, task: str = TEXT_TASK) -> str | None:
    """The id of the job that is claimed for the message of `record`; None if no job is."""
    claim = claims.claim_for(request(task), dispatch.message(record))
    return None if claim is None else claim.job_id


def test_one_request_makes_one_claim(register: Register) -> None:
    """The signal handler and the task body get the same claim."""
    record, one = register("a"), request()
    assert claims.current_claim(one) is None
    claim = claims.claim_for(one, dispatch.message(record))
    assert claim is not None
    assert claim.record.attempt == 1
    assert claims.claim_for(one, dispatch.message(record)) is claim
    assert claims.current_claim(one) is claim


def test_a_record_of_a_newer_release_is_left_alone(
    register: Register, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is dropped without an error: the newer release publishes the job again."""
    record = register("a")
    monkeypatch.setattr("ourvidz.ledger.connection.RECORD_VERSION", 0)
    assert claims.claim_for(request(IMAGE_TASK), dispatch.message(record)) is None
    monkeypatch.undo()
    after = ledger.get("a")
    assert after is not None
    assert (after.status, after.attempt, after.failures) == ("queued", 0, {})


def test_a_request_whose_claim_was_refused_does_not_claim_again(register: Register, ledger: Ledger) -> None:
    """If the job is free again when the task body runs, the sweep has published another message."""
    record, one = register("a"), request(IMAGE_TASK)
    other = ledger.claim("a", 1, worker_id="chat@another", lease_s=10, token="t")
    assert other is not None
    assert claims.claim_for(one, dispatch.message(record)) is None
    assert ledger.rescue(other)
    assert claims.claim_for(one, dispatch.message(record)) is None


def test_a_claim_whose_reply_was_lost_is_claimed_again_with_its_token(
    register: Register, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task body repeats the call with the same token and gets the claim, so no attempt is lost."""
    record, one, claim = register("a"), request(), ledger.claim

    def lose_the_reply(*args: Any, **kwargs: Any) -> Any:
        claim(*args, **kwargs)
        raise WorkerUnavailable("the connection broke")

    monkeypatch.setattr(ledger, "claim", lose_the_reply)
    with pytest.raises(WorkerUnavailable):
        claims.claim_for(one, dispatch.message(record))
    monkeypatch.undo()
    found = claims.claim_for(one, dispatch.message(record))
    assert found is not None
    assert (found.job_id, found.record.attempt) == ("a", 1)


def test_a_request_carries_one_typed_object(register: Register) -> None:
    """The state between handler and body is a dataclass with slots, so a misspelt field raises an error."""
    one = request()
    before = set(vars(one))
    claims.claim_for(one, dispatch.message(register("a")))
    (added,) = set(vars(one)) - before
    state = getattr(one, added)
    assert dataclasses.is_dataclass(state)
    assert not hasattr(state, "__dict__")


def test_a_text_message_starts_the_next_text_job_of_the_queue(register: Register) -> None:
    """Concurrent submissions may be published in another order than recorded; jobs start as recorded."""
    first, second, third = register("a"), register("b"), register("c")
    assert started_by(third) == "a"
    assert started_by(first) == "b"
    assert started_by(second) == "c"
    assert started_by(third) is None


def test_a_message_of_another_task_starts_its_own_job(ledger: Ledger) -> None:
    """Only messages of text jobs are interchangeable."""
    ledger.register(image_job("a"), priority=6)
    second = ledger.register(image_job("b"), priority=6).record
    assert started_by(second, IMAGE_TASK) == "b"


def test_a_text_message_starts_its_own_job_if_the_next_one_cannot_start(
    register: Register, ledger: Ledger
) -> None:
    """A next job that is cancelled, not due or of another task does not block text jobs."""
    register("a"), register("b")
    own = register("c")
    ledger.request_cancel("a")
    assert started_by(register("x")) == "b", "the one after the cancelled job"
    assert started_by(own) == "c"
    assert ledger.end(ledger.get("a"), outcome=DONE)
    assert ledger.end(ledger.get("x"), outcome=DONE)
    rescued = ledger.get("b")
    assert rescued is not None
    assert ledger.rescue(rescued, counted=False)
    released = claims.claim("b", 1, worker_id=WORKER, token="t")
    assert released is not None
    assert ledger.release(released, code=OutOfMemory.code, due_in_s=60)
    assert started_by(register("d")) == "d"
    ledger.register(dispatch.parse_payload({"id": "e", "type": "admin_utilities"}), priority=0)
    assert started_by(register("f")) == "f"


def test_a_companion_is_claimed_like_any_job(register: Register, ledger: Ledger) -> None:
    """It is claimed for the worker that runs the batch; a claimed job is not claimed twice."""
    record = register("a")
    claim = claims.claim_companion(record, worker_id=WORKER, beside="first")
    assert claim is not None
    assert (claim.record.worker_id, claim.record.status) == (WORKER, "processing")
    assert claims.claim_companion(record, worker_id=WORKER, beside="first") is None


def test_a_payload_in_a_message_is_recorded_once(ledger: Ledger) -> None:
    """A repeated delivery of `send_task` creates one job; another payload with the same id is refused."""
    payload = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
    first, second = request(IMAGE_TASK), request(IMAGE_TASK)
    assert claims.claim_for(first, payload) is not None
    assert claims.claim_for(second, payload) is None
    with pytest.raises(Conflict):
        claims.claim_for(request(IMAGE_TASK), payload | {"prompt": "a lake"})


def test_a_payload_sent_to_the_task_of_another_family_is_published_on_its_queue(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have only the models of their family."""
    published: list[Record] = []
    monkeypatch.setattr(dispatch, "publish", lambda record: published.append(record) or True)
    payload = {"id": "a", "type": "video_fast", "prompt": "a hill", "user_id": "me"}
    assert claims.claim_for(request(IMAGE_TASK), payload) is None
    assert claims.claim_for(request(IMAGE_TASK), payload) is None
    assert [record.queue for record in published] == ["wan_queue"]
    record = ledger.get("a")
    assert record is not None
    assert (record.status, record.attempt) == ("queued", 0)
