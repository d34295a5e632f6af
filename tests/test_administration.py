"""What operators ask of the whole installation."""

from __future__ import annotations

import pytest

from ourvidz import administration
from ourvidz.app import app
from ourvidz.celery_settings import FLUSH_TASK
from ourvidz.errors import InvalidParameters
from ourvidz.ledger.record import Worker


@pytest.fixture
def at(ourvidz_eager) -> object:
    """An installation in this process, with one worker that has been seen."""
    worker = Worker(
        id="sdxl@host-gpu0",
        family="sdxl",
        queue="sdxl_queue",
        host="host",
        pid=7,
        gpu="0",
        state="busy",
        models=("sdxl",),
        version="1",
        started_at=1.0,
        seen_at=1.0,
        detail={"info": {"sdxl": {"name": "tiny-sdxl"}}},
    )
    ourvidz_eager.control.ledger.heartbeat(worker)
    return ourvidz_eager


def test_the_status_is_queues_and_workers(at) -> None:
    """The first thing an operator asks."""
    at.control.ledger.set_paused("wan_queue", True)
    found = administration.administer("status")
    assert found["queues"] == {
        "sdxl_queue": {"depth": 0, "paused": False, "workers": 1},
        "wan_queue": {"depth": 0, "paused": True, "workers": 0},
        "chat_queue": {"depth": 0, "paused": False, "workers": 0},
    }
    (worker,) = found["workers"]
    assert (worker["id"], worker["state"], worker["models"]) == ("sdxl@host-gpu0", "busy", ["sdxl"])
    assert found == administration.administer("queues") | administration.administer("workers")


def test_the_models_are_those_of_the_workers_that_are_here(at) -> None:
    """One that has gone holds nothing."""
    assert administration.administer("models") == {
        "models": [{"worker": "sdxl@host-gpu0", "name": "sdxl", "info": {"name": "tiny-sdxl"}}]
    }
    at.control.ledger.mark_offline("sdxl@host-gpu0")
    assert administration.administer("models") == {"models": []}


def test_an_unknown_operation_is_refused_with_those_there_are() -> None:
    """Operators guess; the answer helps."""
    with pytest.raises(InvalidParameters, match="flush_caches") as refused:
        administration.administer("reboot")
    assert refused.value.field == "operation"


def test_flushing_asks_every_worker_that_holds_models(at) -> None:
    """Each on its own queue: only the process that holds a model can give its memory back."""
    assert FLUSH_TASK in app.tasks
    found = administration.administer("flush_caches")
    assert found == {"flushed": ["tokenizers"], "asked": ["sdxl@host-gpu0"]}


def test_an_operation_is_a_job_too(at) -> None:
    """Its one asset carries what was found out."""
    at.submit({"id": "a", "type": "admin_utilities", "operation": "queues"})
    at.submit({"id": "b", "type": "admin_utilities", "operation": "reboot"})
    (asset,) = at.record("a").outcome.assets
    assert (asset.type, asset.metadata["operation"]) == ("json", "queues")
    assert asset.metadata["result"]["queues"].keys() == {"sdxl_queue", "wan_queue", "chat_queue"}
    assert at.callbacks.statuses("a") == ["processing", "completed"]
    assert at.record("b").outcome.error.code == "INVALID_PARAMETERS"
