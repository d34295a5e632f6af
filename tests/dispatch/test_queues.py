"""Queues of a real broker: lengths, and what is removed."""

from __future__ import annotations

import json
import socket
from base64 import b64decode

import pytest

from ourvidz import dispatch
from ourvidz.dispatch.messages import BROKER_ERRORS
from tests.dispatch.conftest import Installation
from tests.factories import publishing_to


def test_messages_for_deliveries_are_kept_up_to_a_limit(installation: Installation) -> None:
    """Without an io worker each job adds some; the oldest stay, and the outbox has the others."""
    for number in range(30):
        dispatch.deliver(f"job{number}")
    broker = dispatch.Broker()
    assert broker.deliveries_waiting() == 30
    assert broker.trim_deliveries(10) == 20
    assert broker.trim_deliveries(10) == 0
    job_ids = [json.loads(b64decode(each["body"]))[0][0] for each in installation.messages("callbacks")]
    assert job_ids == [f"job{number}" for number in reversed(range(10))]


def test_the_queues_of_workers_that_are_gone_are_removed(installation: Installation) -> None:
    """Hosts of containers have new names at every start; the queue of a live worker stays."""
    for worker_id in ("sdxl@old-gpu0", "sdxl@new-gpu0"):
        assert dispatch.flush(worker_id)
    assert dispatch.remove_worker_queues({"sdxl@new-gpu0"}) == 1
    left = [name.decode() for name in installation.broker.keys("*dq2*")]
    bindings = installation.broker.smembers(f"{installation.app.settings.broker_prefix}_kombu.binding.C.dq2")
    assert not any("old" in name for name in left)
    assert any("sdxl@new-gpu0.dq2" in name for name in left)
    assert [b"new" in binding for binding in bindings] == [True]
    assert dispatch.remove_worker_queues({"sdxl@new-gpu0"}) == 0


def test_a_broker_that_is_away_is_not_waited_for(installation: Installation) -> None:
    """The keeper has other things to do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        unused_port = server.getsockname()[1]
    with publishing_to(f"redis://127.0.0.1:{unused_port}/0"), pytest.raises(BROKER_ERRORS):
        dispatch.waiting_messages("sdxl_queue")


def test_without_any_worker_nothing_is_removed(installation: Installation) -> None:
    """No queue was ever declared."""
    assert dispatch.remove_worker_queues(set()) == 0
