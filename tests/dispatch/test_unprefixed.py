"""Messages that an earlier release left under keys without a prefix."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.app import app as celery_app
from ourvidz.dispatch import adopt_unprefixed_messages
from ourvidz.dispatch.unprefixed import Adopted
from tests.dispatch.conftest import Install, Installation
from tests.factories import BEAT_MESSAGE, image_job, publishing_to, worker

PAYLOAD = {"id": "old-client", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
OLD_LIST = "sdxl_queue\x06\x166"
FOREIGN = ('{"id": "raw"}', "no JSON", '{"body": 1, "properties": {}, "headers": []}')


@pytest.fixture
def upgraded(install: Install, redis_url: str) -> Installation:
    """An installation whose earlier release left one message at each priority and one of an unknown job."""
    installation = install(OURVIDZ_VISIBILITY_TIMEOUT_S=60)
    for job_id in ("a", "b", "another-installation-s"):
        installation.ledger.register(image_job(job_id), priority=6)
    urgent = installation.ledger.register(image_job("urgent"), priority=0).record
    with publishing_to(redis_url, prefix=""):
        for job_id in ("a", "b", "another-installation-s"):
            assert dispatch.publish(installation.ledger.get(job_id))
        assert dispatch.publish(urgent)
        celery_app.send_task("ourvidz.sdxl.generate", args=(PAYLOAD,), priority=6)
        celery_app.send_task("ourvidz.callbacks.deliver", args=("a",), queue="callbacks", priority=0)
    installation.broker.lpush("maintenance", BEAT_MESSAGE)
    installation.broker.delete("ourvidz:job:another-installation-s")
    return installation


def arguments(messages: list[dict[str, Any]]) -> list[Any]:
    """The argument of each message's task; of a job's own message, the job id."""
    found = [json.loads(base64.b64decode(each["body"]))[0][0] for each in messages]
    return [each["id"] if dispatch.is_message(each) else each for each in found]


def test_messages_of_the_earlier_release_are_moved_in_front_of_newer_ones(upgraded: Installation) -> None:
    """A rolling upgrade must lose nothing: not even a payload that is in no ledger yet."""
    assert dispatch.publish(upgraded.ledger.register(image_job("newer"), priority=6).record)
    assert adopt_unprefixed_messages() == Adopted(moved=5, dropped=1)
    # Newest first, as they stand in the list; the oldest is received first.
    assert arguments(upgraded.messages("sdxl_queue")) == ["urgent", "newer", PAYLOAD, "b", "a"]
    assert arguments(upgraded.messages("callbacks")) == ["a"]
    assert upgraded.messages("maintenance") == []
    assert adopt_unprefixed_messages() == Adopted()


def test_messages_go_to_where_the_workers_of_their_queue_look(upgraded: Installation) -> None:
    """In a rolling upgrade the workers of a queue are of the old release, then of both, then of the new."""
    ledger = upgraded.ledger
    ledger.heartbeat(worker("sdxl"))
    assert dispatch.publish(ledger.register(image_job("newer"), priority=6).record)
    assert adopt_unprefixed_messages() == Adopted(moved=2, dropped=1)  # and the delivery
    assert upgraded.messages("sdxl_queue") == []
    ledger.heartbeat(worker("sdxl", id="sdxl@other", broker_prefix="ourvidz:broker:"))
    assert adopt_unprefixed_messages() == Adopted()
    ledger.mark_offline("sdxl@host-gpu0")
    assert adopt_unprefixed_messages() == Adopted(moved=5)
    assert arguments(upgraded.messages("sdxl_queue")) == ["urgent", PAYLOAD, "b", "a", "newer"]


def test_messages_of_others_stay_where_they_are(upgraded: Installation) -> None:
    """Another installation that has not been upgraded yet, other applications, callers' raw lists."""
    upgraded.broker.rpush("sdxl_queue", *FOREIGN)
    upgraded.broker.set("wan_queue", "no list")
    adopt_unprefixed_messages()
    (left,) = (json.loads(raw) for raw in upgraded.broker.lrange(OLD_LIST, 0, -1))
    assert arguments([left]) == ["another-installation-s"]
    assert [raw.decode() for raw in upgraded.broker.lrange("sdxl_queue", 0, -1)] == list(FOREIGN)
    assert upgraded.broker.get("wan_queue") == b"no list"


def test_a_message_that_a_worker_received_is_moved_when_the_broker_would_restore_it(
    upgraded: Installation, redis_url: str
) -> None:
    """The worker of the earlier release may still be working on it."""
    earlier = publishing_to(redis_url, prefix="", ack_emulation=True)
    with earlier, celery_app.connection() as connection:
        channel = connection.default_channel
        received = channel.basic_get("sdxl_queue"), channel.basic_get("sdxl_queue")
        # Else closing the connection would put them back.
        channel.qos._delivered.clear()
    adopt_unprefixed_messages()
    assert arguments(upgraded.messages("sdxl_queue")) == [PAYLOAD, "b"]
    upgraded.broker.zadd("unacked_index", {received[0].delivery_tag: 1, received[1].delivery_tag: 1})
    assert adopt_unprefixed_messages() == Adopted(moved=2)
    assert arguments(upgraded.messages("sdxl_queue")) == ["urgent", PAYLOAD, "b", "a"]
    assert upgraded.broker.exists("unacked", "unacked_index") == 0
