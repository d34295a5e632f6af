"""Reading the messages of a real broker's queues."""

from __future__ import annotations

import json

from ourvidz import dispatch
from ourvidz.recovery.check import Messages
from tests.dispatch.conftest import Installation
from tests.factories import image_job


def test_waiting_and_received_messages_are_read_and_stay(installation: Installation) -> None:
    """A message that a worker has received and not finished counts; raw entries are counted apart."""
    for job_id in ("waiting", "received", "~strange id~2"):
        dispatch.publish(installation.ledger.register(image_job(job_id), priority=6).record)
    queue = "ourvidz:broker:sdxl_queue\x06\x166"
    raw = next(each for each in installation.broker.lrange(queue, 0, -1) if b"received" in each)
    installation.broker.lrem(queue, 1, raw)
    installation.broker.hset(
        "ourvidz:broker:unacked", "tag", json.dumps([json.loads(raw), "ourvidz", "sdxl_queue"])
    )
    installation.broker.lpush("ourvidz:broker:sdxl_queue", '{"id": "raw"}', "text")
    expected = Messages(frozenset({"waiting", "received", "~strange id~2"}), foreign=2)
    assert dispatch.Broker().messages("sdxl_queue") == expected
    assert dispatch.Broker().messages("wan_queue") == Messages(frozenset(), foreign=0)
    assert dispatch.Broker().messages("sdxl_queue") == expected
