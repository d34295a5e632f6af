"""Operations on workers: requeue at shutdown, pause, drain, flush."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.app import app as celery_app
from ourvidz.errors import NotFound, WorkerLost
from tests.dispatch.conftest import Installation
from tests.factories import chat_job, image_job, publishing_to, worker

SDXL = "sdxl@host-gpu0"
Broadcasts = list[tuple[str, str, Any]]


@pytest.fixture
def broadcasts(monkeypatch: pytest.MonkeyPatch) -> Broadcasts:
    """The remote control commands that were sent: verb, queue, destination (None for all workers)."""
    sent: Broadcasts = []
    for verb in ("add_consumer", "cancel_consumer"):
        monkeypatch.setattr(
            celery_app.control,
            verb,
            lambda queue, destination=None, verb=verb: sent.append((verb, queue, destination)),
        )
    return sent


def test_a_job_of_a_stopping_worker_is_queued_again_and_not_counted(installation: Installation) -> None:
    """A deployment must cost no attempts."""
    installation.ledger.register(image_job("a"), priority=6)
    installation.ledger.claim("a", 1, worker_id=SDXL, lease_s=60, token="t")
    assert dispatch.requeue_held_jobs("sdxl@another") == []
    assert dispatch.requeue_held_jobs(SDXL) == ["a"]
    record = installation.ledger.get("a")
    assert (record.status, record.attempt, record.failures, record.publishes) == ("queued", 0, {}, 1)
    assert len(installation.messages("sdxl_queue")) == 1


def test_an_answer_that_is_being_read_ends_with_a_clean_shutdown_too(installation: Installation) -> None:
    """Its caller has the beginning: another attempt would stream it again."""
    ledger = installation.ledger
    ledger.register(chat_job(job_id="a", stream=True), priority=0, suppress_callbacks=True)
    claim = ledger.claim("a", 1, worker_id="chat@here", lease_s=10, token="t")
    assert claim is not None
    ledger.step(claim, items=[("token", {"text": "A hill"})])
    assert dispatch.requeue_held_jobs("chat@here") == []
    record = ledger.get("a")
    assert (record.status, record.outcome.error.code) == ("failed", WorkerLost.code)
    assert ledger.next_event("a") is None


def test_a_paused_queue_is_consumed_again_by_workers_that_do_not_drain(
    installation: Installation, broadcasts: Broadcasts
) -> None:
    """Resuming a queue must not end a drain."""
    installation.ledger.heartbeat(worker())
    installation.ledger.heartbeat(worker(id="sdxl@draining"))
    installation.ledger.set_draining("sdxl@draining", True)
    dispatch.pause("sdxl_queue")
    assert installation.ledger.paused_queues() == {"sdxl_queue"}
    dispatch.resume("sdxl_queue")
    assert installation.ledger.paused_queues() == frozenset()
    assert broadcasts == [
        ("cancel_consumer", "sdxl_queue", None),
        ("add_consumer", "sdxl_queue", [SDXL]),
    ]


def test_a_queue_without_workers_wakes_none(installation: Installation, broadcasts: Broadcasts) -> None:
    """An empty destination would be a broadcast to every worker."""
    dispatch.wake("sdxl_queue")
    assert broadcasts == []


def test_a_drained_worker_consumes_again_unless_its_queue_is_paused(
    installation: Installation, broadcasts: Broadcasts
) -> None:
    """The pause is about the queue, the drain about the worker: both must be over."""
    installation.ledger.heartbeat(worker())
    dispatch.drain(SDXL)
    installation.ledger.set_paused("sdxl_queue", True)
    dispatch.drain(SDXL, draining=False)
    assert broadcasts == [("cancel_consumer", "sdxl_queue", [SDXL])]
    installation.ledger.set_paused("sdxl_queue", False)
    dispatch.drain(SDXL, draining=False)
    assert broadcasts[1:] == [("add_consumer", "sdxl_queue", [SDXL])]


def test_a_worker_that_was_never_seen_cannot_be_drained(installation: Installation) -> None:
    """An operator learns of the typo."""
    with pytest.raises(NotFound):
        dispatch.drain("sdxl@typo")


def test_a_flush_that_cannot_be_sent_is_reported(installation: Installation) -> None:
    """The operator is shown which workers were asked."""
    assert dispatch.flush(SDXL)
    with publishing_to("redis://127.0.0.1:1/0"):
        assert not dispatch.flush(SDXL)


def test_only_messages_that_no_worker_has_received_are_counted(installation: Installation) -> None:
    """The sweep takes an empty queue with jobs on record for lost messages."""
    assert dispatch.waiting_messages("sdxl_queue") == 0
    dispatch.submit({"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"})
    assert dispatch.waiting_messages("sdxl_queue") == 1
    assert dispatch.Broker().waiting_messages("sdxl_queue") == 1
