"""Administrative operations."""

from __future__ import annotations

import pytest

from ourvidz import administration
from ourvidz.app import app
from ourvidz.celery_settings import FLUSH_TASK
from ourvidz.errors import InvalidParameters
from ourvidz.testing import Eager
from tests.factories import worker


@pytest.fixture
def system(ourvidz_eager: Eager) -> Eager:
    """A system in eager mode with one busy worker."""
    ourvidz_eager.control.ledger.heartbeat(worker(state="busy", started_at=1.0, seen_at=1.0))
    return ourvidz_eager


def test_the_status_is_queues_and_workers(system: Eager) -> None:
    """The overview for operators."""
    system.control.ledger.set_paused("wan_queue", True)
    result = administration.administer("status")
    assert result["queues"] == {
        "sdxl_queue": {"depth": 0, "paused": False, "workers": 1},
        "wan_queue": {"depth": 0, "paused": True, "workers": 0},
        "chat_queue": {"depth": 0, "paused": False, "workers": 0},
    }
    (row,) = result["workers"]
    assert (row["id"], row["state"], row["models"]) == ("sdxl@host-gpu0", "busy", ["sdxl"])
    assert result == administration.administer("queues") | administration.administer("workers")


def test_the_models_are_those_of_the_online_workers(system: Eager) -> None:
    """Models of offline workers are not listed."""
    assert administration.administer("models") == {
        "models": [{"worker": "sdxl@host-gpu0", "name": "sdxl", "info": {"name": "tiny-sdxl"}}]
    }
    system.control.ledger.mark_offline("sdxl@host-gpu0")
    assert administration.administer("models") == {"models": []}


def test_an_unknown_operation_is_refused_with_the_names_that_exist() -> None:
    """The error lists the valid operations."""
    with pytest.raises(InvalidParameters, match="flush_caches") as refused:
        administration.administer("reboot")
    assert refused.value.field == "operation"


def test_a_flush_is_sent_to_every_worker_with_models(system: Eager) -> None:
    """Only the process that has loaded a model can free its memory."""
    assert FLUSH_TASK in app.tasks
    result = administration.administer("flush_caches")
    assert result == {"flushed": ["tokenizers"], "asked": ["sdxl@host-gpu0"]}


def test_an_operation_can_run_as_a_job(system: Eager) -> None:
    """The result is the only asset of the job."""
    system.submit({"id": "a", "type": "admin_utilities", "operation": "queues"})
    system.submit({"id": "b", "type": "admin_utilities", "operation": "reboot"})
    (asset,) = system.record("a").outcome.assets
    assert (asset.type, asset.metadata["operation"]) == ("json", "queues")
    assert asset.metadata["result"]["queues"].keys() == {"sdxl_queue", "wan_queue", "chat_queue"}
    assert system.callbacks.statuses("a") == ["processing", "completed"]
    assert system.record("b").outcome.error.code == "INVALID_PARAMETERS"
