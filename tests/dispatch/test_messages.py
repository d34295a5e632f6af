"""Messages: what they carry, in which order a job's messages are published, and a broker that is away."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.celery_settings import ENHANCE_TASK
from ourvidz.jobs.catalog import CATALOG
from tests.dispatch.conftest import Install, Installation
from tests.factories import image_job, publishing_to, worker

ENHANCED = {
    "id": "a",
    "type": "image7b_fast_enhanced",
    "prompt": "a red circle on a blue background",
    "user_id": "me",
    "config": {"steps": 1, "seed": 3},
}
WAN_TASK = "ourvidz.wan.generate"


def body(message: dict[str, Any]) -> Any:
    """The arguments, keyword arguments and embedded canvas of a message."""
    return json.loads(base64.b64decode(message["body"]))


def test_a_message_contains_the_id_and_the_run_only(installation: Installation) -> None:
    """Prompts are not stored in the broker."""
    record = installation.ledger.register(image_job("a"), priority=6).record
    assert dispatch.message(record) == {"v": 1, "id": "a", "run": 1}
    assert dispatch.publish(record)
    (message,) = installation.messages("sdxl_queue")
    assert body(message)[0] == [{"v": 1, "id": "a", "run": 1}]
    assert message["headers"]["argsrepr"] == dispatch.REDACTED
    assert message["properties"]["priority"] == 6


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ({"v": 1, "id": "a", "run": 1}, True),
        ({"v": 2, "id": "a", "run": 1}, True),
        ({"v": 2, "id": "a", "run": 1, "added": 3}, True),
        ({"id": "a", "type": "sdxl_image_fast", "prompt": "a hill"}, False),
        ({"v": 1, "id": "a", "run": 1, "prompt": "a hill"}, False),
        ("a", False),
        (None, False),
    ],
)
def test_messages_and_payloads_are_distinguished(argument: object, expected: bool) -> None:
    """A task is called with either; a message of a newer version is still a message."""
    assert dispatch.is_message(argument) is expected


def test_each_run_has_its_own_task_id(installation: Installation) -> None:
    """Celery discards messages whose task id was revoked."""
    dispatch.submit({"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"})
    dispatch.cancel("a")
    assert dispatch.task_id(dispatch.retry("a")) == "a~2"
    again, first = installation.messages("sdxl_queue")
    assert (first["headers"]["id"], again["headers"]["id"]) == ("a", "a~2")


def test_the_hard_limit_leaves_room_for_the_soft_one_and_for_the_model(install: Install) -> None:
    """The soft limit fails a job with its code; the hard limit kills a child that reaches no step."""
    installation = install(OURVIDZ_TIME_LIMITS_S={"sdxl_image_fast": 200}, OURVIDZ_MODEL_LOAD_S=50)
    assert dispatch.time_limit_s("sdxl_image_fast") == 200
    assert dispatch.time_limit_s("video_fast") == CATALOG["video_fast"].time_limit_s
    dispatch.submit({"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"})
    (message,) = installation.messages("sdxl_queue")
    assert message["headers"]["timelimit"] == [350, None]


def test_a_failed_publication_is_not_recorded(installation: Installation) -> None:
    """The sweep publishes jobs without a recorded publication."""
    record = installation.ledger.register(image_job("a"), priority=6).record
    with publishing_to("redis://127.0.0.1:1/0"):
        assert not dispatch.publish(record)
    assert installation.ledger.get("a").publishes == 0
    assert dispatch.publish(record)
    assert installation.ledger.get("a").publishes == 1


def test_with_a_chat_worker_the_prompt_is_enhanced_first(installation: Installation) -> None:
    """Both messages contain ids only; the generation is linked to the enhancement and has its own options."""
    installation.ledger.heartbeat(worker("chat"))
    dispatch.submit(ENHANCED)
    assert installation.messages("wan_queue") == []
    (first,) = installation.messages("chat_queue")
    assert (first["headers"]["task"], first["headers"]["id"]) == (ENHANCE_TASK, "a~enhance")
    assert first["properties"]["priority"] == 3
    args, _, embedded = body(first)
    assert args == [{"v": 1, "id": "a", "run": 1}]
    (second,) = embedded["chain"]
    assert (second["task"], second["args"], second["immutable"]) == (WAN_TASK, args, True)
    options = second["options"]
    assert (options["task_id"], options["queue"], options["priority"]) == ("a", "wan_queue", 6)
    assert ENHANCED["prompt"] not in f"{first['headers']}{body(first)}"
    record = installation.ledger.get("a")
    assert (record.enhancement, record.publishes) == ("wanted", 1)


@pytest.mark.parametrize(
    ("absence", "reason"),
    [
        ("none", dispatch.NO_CHAT_WORKER),
        ("offline", dispatch.NO_CHAT_WORKER),
        ("draining", dispatch.NO_CHAT_WORKER),
        ("another queue", dispatch.NO_CHAT_WORKER),
        ("paused", dispatch.CHAT_QUEUE_PAUSED),
    ],
)
def test_without_a_chat_worker_the_generation_is_published_alone(
    installation: Installation, absence: str, reason: str
) -> None:
    """The job does not wait a minute for a worker that is not there, and the reason given to its caller tells
    a paused queue from an absent worker."""
    ledger = installation.ledger
    if absence != "none":
        ledger.heartbeat(worker("chat", queue="sdxl_queue" if absence == "another queue" else "chat_queue"))
    if absence == "offline":
        ledger.mark_offline("chat@host-gpu0")
    if absence == "draining":
        ledger.set_draining("chat@host-gpu0", True)
    ledger.set_paused("chat_queue", absence == "paused")
    dispatch.submit(ENHANCED)
    assert installation.messages("chat_queue") == []
    (message,) = installation.messages("wan_queue")
    assert (message["headers"]["task"], message["headers"]["id"]) == (WAN_TASK, "a")
    record = ledger.get("a")
    assert (record.enhancement, record.enhancement_result) == ("over", {"reason": reason})


def test_each_run_of_an_enhanced_job_has_its_own_task_ids(installation: Installation) -> None:
    """Celery discards messages whose task id was revoked; this holds for both messages of the chain."""
    installation.ledger.heartbeat(worker("chat"))
    dispatch.submit(ENHANCED)
    dispatch.cancel("a")
    dispatch.retry("a")
    again, _ = installation.messages("chat_queue")
    assert again["headers"]["id"] == "a~2~enhance"
    assert body(again)[2]["chain"][0]["options"]["task_id"] == "a~2"


def test_a_prompt_that_was_enhanced_is_not_enhanced_again(installation: Installation) -> None:
    """After the enhancement only the generation message can be lost."""
    installation.ledger.heartbeat(worker("chat"))
    record = dispatch.submit(ENHANCED).record
    lease = installation.ledger.begin_enhancement("a", 1, lease_s=10, token="e")
    assert lease is not None
    installation.ledger.end_enhancement(lease, result={"prompt": "a red circle, soft light"})
    assert len(installation.messages("chat_queue")) == 1
    dispatch.publish(installation.ledger.get("a") or record)
    assert len(installation.messages("chat_queue")) == 1
    assert len(installation.messages("wan_queue")) == 1
