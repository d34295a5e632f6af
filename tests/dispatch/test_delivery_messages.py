"""Messages by which processes of an earlier release ask for deliveries."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest

from ourvidz import dispatch
from ourvidz.app import app as celery_app
from ourvidz.errors import Cancelled, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from tests.dispatch.conftest import Installation
from tests.factories import image_job, publishing_to, worker

FORMER_IO = worker("io", id="io@old", queue="callbacks")
IO = worker("io", id="io@new", queue="io")


def finish(installation: Installation, *job_ids: str) -> None:
    """Leave one due callback of each job in the outbox."""
    for job_id in job_ids:
        record = installation.ledger.register(image_job(job_id), priority=6).record
        outcome = Outcome.failure(Cancelled("the job was cancelled"))
        assert installation.ledger.end(record, outcome=outcome)


def requested(installation: Installation) -> list[str]:
    """The jobs that the messages name, newest first."""
    messages = installation.messages("callbacks")
    return [json.loads(b64decode(message["body"]))[0][0] for message in messages]


def test_an_io_worker_of_an_earlier_release_gets_messages(installation: Installation) -> None:
    """It waits for messages, and the workers of this release publish none."""
    installation.ledger.heartbeat(FORMER_IO)
    finish(installation, "a", "b")
    assert dispatch.serve_former_io() == 0
    assert sorted(requested(installation)) == ["a", "b"]
    (message, _) = installation.messages("callbacks")
    assert message["properties"]["priority"] == 0
    assert message["headers"]["argsrepr"] == dispatch.REDACTED


def test_it_gets_no_more_while_it_has_some(installation: Installation) -> None:
    """While it hangs, its queue would be filled with duplicates."""
    installation.ledger.heartbeat(FORMER_IO)
    finish(installation, "a")
    for _ in range(3):
        assert dispatch.serve_former_io() == 0
    assert requested(installation) == ["a"]


def test_without_one_the_messages_of_an_earlier_release_are_removed(installation: Installation) -> None:
    """Its workers publish two for each job, which nobody takes any more."""
    installation.ledger.heartbeat(IO)
    finish(installation, "a")
    for job_id in ("a", "b", "c"):
        celery_app.send_task("ourvidz.callbacks.deliver", args=(job_id,), queue="callbacks", priority=0)
    assert dispatch.serve_former_io() == 3
    assert requested(installation) == []
    assert installation.ledger.due_deliveries() == ["a"], "what they asked for is in the outbox"


def test_a_broker_that_is_away_is_an_outage(installation: Installation) -> None:
    """The keeper puts the duty off, without a traceback."""
    with publishing_to("redis://127.0.0.1:1/0"), pytest.raises(WorkerUnavailable):
        dispatch.serve_former_io()
