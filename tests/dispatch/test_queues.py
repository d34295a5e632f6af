"""Queues of a real broker: lengths, and what is removed."""

from __future__ import annotations

import socket

import pytest

from ourvidz import dispatch
from ourvidz.dispatch.messages import BROKER_ERRORS
from ourvidz.dispatch.queues import clear
from tests.dispatch.conftest import Installation
from tests.factories import image_job, publishing_to


def test_a_queue_is_cleared_at_all_priorities(installation: Installation) -> None:
    """Each priority is a list of its own, and the keys carry a prefix; other queues keep their messages."""
    for job_id, priority in (("a", 0), ("b", 6), ("c", 6)):
        dispatch.publish(installation.ledger.register(image_job(job_id), priority=priority).record)
    dispatch.flush("sdxl@host")
    assert clear("sdxl_queue") == 3
    assert installation.messages("sdxl_queue") == []
    assert clear("sdxl_queue") == 0
    assert dispatch.waiting_messages("sdxl@host.dq2") == 1


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
