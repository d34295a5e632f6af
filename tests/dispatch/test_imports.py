"""Raw lists: jobs that callers push as JSON onto Redis lists."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.app import app as celery_app
from ourvidz.callbacks.delivery import CallbackSender
from ourvidz.dispatch import import_lists
from ourvidz.dispatch.imports import ImportReport
from ourvidz.errors import WorkerUnavailable
from ourvidz.recovery.check import check_ledger
from ourvidz.testing import CallbackRecorder
from ourvidz.wiring import control
from tests.dispatch.conftest import Install, Installation
from tests.factories import REFUSED_TEXT

ENTRIES, KILLS = int(os.environ.get("OURVIDZ_TEST_ENTRIES", "120")), 5
SAMPLES = Path(__file__).parents[1] / "contract/payloads"
IMAGE = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
WAIT_S = 30.0


def push(installation: Installation, *entries: Any, to: str = "sdxl_queue") -> None:
    """Push entries as a caller does: JSON documents, or the text as given."""
    texts = [entry if isinstance(entry, str | bytes) else json.dumps(entry) for entry in entries]
    installation.broker.rpush(to, *texts)


def refused(installation: Installation) -> list[dict[str, Any]]:
    """The reports of refused entries."""
    return [json.loads(raw) for raw in installation.broker.lrange("ourvidz:refused_imports", 0, -1)]


def left(installation: Installation) -> int:
    """The number of entries in the lists, and of those that are being imported."""
    names = ("sdxl_queue", "wan_queue", "chat_queue")
    return sum(installation.broker.llen(p + name) for name in names for p in ("", "ourvidz:importing:"))


def test_entries_of_every_generation_of_callers_become_their_jobs(installation: Installation) -> None:
    """An edge function that was not migrated works without a change."""
    samples = [json.loads(path.read_text()) for path in sorted(SAMPLES.glob("*.json"))]
    accepted = [sample for sample in samples if "job" in sample["expect"]]
    for sample in accepted:
        push(installation, sample["payload"], to="wan_queue")
    assert import_lists() == ImportReport(accepted=len(accepted))
    for sample in accepted:
        record = installation.ledger.get(sample["payload"].get("id") or sample["payload"]["job_id"])
        assert (record.status, record.publishes) == ("queued", 1)
        assert record.type == sample["expect"]["job"].get("type", record.type)
    assert left(installation) == 0


def test_jobs_start_in_the_order_in_which_they_were_pushed(installation: Installation) -> None:
    """Polling workers took the oldest first; a document that was encoded twice counts too."""
    encoded_twice = json.dumps(json.dumps(IMAGE | {"id": "b"}))
    push(installation, IMAGE | {"id": "c"}, IMAGE | {"id": "a"}, encoded_twice)
    import_lists()
    assert [record.job_id for record in installation.ledger.queued("sdxl_queue")] == ["c", "a", "b"]


def test_an_importer_that_died_before_it_noted_the_end_doubles_nothing(installation: Installation) -> None:
    """Between the submission and the removal of the entry there is always a moment."""
    push(installation, IMAGE)
    entry = installation.ledger.next_import("sdxl_queue")
    assert entry is not None
    dispatch.submit(json.loads(entry))
    assert import_lists() == ImportReport(accepted=1)
    assert len(installation.messages("sdxl_queue")) == 1
    assert left(installation) == 0


def test_an_importer_killed_again_and_again_loses_and_doubles_nothing(installation: Installation) -> None:
    """The lists are the only copy of a job until it is in the ledger."""
    edge = json.loads((SAMPLES / "10-live-edge-sdxl.json").read_text())["payload"]
    ids = [f"job-{number}" for number in range(ENTRIES)]
    push(installation, *[edge | {"id": job_id, "job_id": job_id} for job_id in ids])
    context = multiprocessing.get_context("fork")
    for kill in range(KILLS):
        importer = context.Process(target=_import_for_ever)
        importer.start()
        _wait_until(installation, ENTRIES * (kill + 1) // (KILLS + 1))
        time.sleep(random.uniform(0, 0.004))
        importer.kill()
        importer.join()
    import_lists()
    queued = installation.ledger.queued("sdxl_queue", limit=2 * ENTRIES)
    assert [record.job_id for record in queued] == ids
    assert installation.ledger.counters()["imports.accepted"] == ENTRIES
    assert left(installation) == 0


def _import_for_ever() -> None:
    celery_app._after_fork()
    while True:
        import_lists()


def _wait_until(installation: Installation, jobs: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while installation.ledger.queue_depth("sdxl_queue") < jobs:
        assert time.monotonic() < deadline, "the importer does not go on"


def test_a_refused_entry_is_put_aside_and_its_receiver_told_once(
    install: Install, ourvidz_callbacks: CallbackRecorder
) -> None:
    """Nobody waits for an answer at a list, so the callback is the only one. A corrected job may follow."""
    installation = install(
        OURVIDZ_CALLBACK_URL=ourvidz_callbacks.url, JOB_CALLBACK_SECRET=ourvidz_callbacks.callback_secret
    )
    push(installation, IMAGE | {"config": {"steps": 0}}, IMAGE | {"id": "b", "prompt": REFUSED_TEXT})
    push(installation, "no JSON", b"\xff\xfe", IMAGE | {"id": "../x"}, IMAGE | {"id": "c", "type": "unknown"})
    push(installation, "[1]", IMAGE | {"id": "after"})
    assert import_lists() == ImportReport(accepted=1, refused=7)
    reports = refused(installation)
    assert [each["code"] for each in reports] == [
        *("INVALID_PARAMETERS", "POLICY_VIOLATION", "INVALID_PARAMETERS", "INVALID_PARAMETERS"),
        *("INVALID_PARAMETERS", "INVALID_PARAMETERS", "INVALID_PARAMETERS"),
    ]
    assert (reports[0]["list"], reports[0]["field"]) == ("sdxl_queue", "config.steps")
    assert json.loads(reports[0]["entry"])["id"] == "a"
    sender = CallbackSender(installation.ledger, control.target(installation.app.settings))
    for job_id in installation.ledger.due_deliveries():
        sender.deliver(job_id)
    received = {one.payload["job_id"]: one.payload for one in ourvidz_callbacks.received}
    assert received.keys() == {"a", "b", "c"}
    assert (received["a"]["status"], received["a"]["error"]["code"]) == ("failed", "INVALID_PARAMETERS")
    assert received["a"]["metadata"]["job_type"] == "sdxl_image_fast"
    assert all(one.verified for one in ourvidz_callbacks.received)
    assert installation.ledger.get("a") is None
    push(installation, IMAGE)
    assert import_lists() == ImportReport(accepted=1)
    assert check_ledger(installation.ledger, dispatch.Broker()).findings == []


def test_an_entry_under_the_id_of_another_job_does_not_fail_that_job(
    install: Install, ourvidz_callbacks: CallbackRecorder
) -> None:
    """Its receiver would take the failure for the job that runs."""
    installation = install(OURVIDZ_CALLBACK_URL=ourvidz_callbacks.url)
    push(installation, IMAGE, IMAGE, IMAGE | {"prompt": "a lake"}, IMAGE | {"config": {"steps": 0}})
    assert import_lists() == ImportReport(accepted=2, refused=2)
    assert installation.ledger.next_event("a") is None
    assert [each["code"] for each in refused(installation)] == ["CONFLICT", "INVALID_PARAMETERS"]


@pytest.mark.parametrize("damage", ["a field", "the kind of key"])
def test_a_damaged_record_under_the_id_of_an_entry_stops_no_list(
    installation: Installation, damage: str
) -> None:
    """The entry is put aside: in front of its list it would keep every later job out, in all lists."""
    push(installation, IMAGE)
    import_lists()
    if damage == "a field":
        installation.broker.hset("ourvidz:job:a", "fence", "many")
    else:
        installation.broker.set("ourvidz:job:a", "no record")
    push(installation, IMAGE, IMAGE | {"id": "behind"})
    push(installation, IMAGE | {"id": "elsewhere"}, to="wan_queue")
    assert import_lists() == ImportReport(accepted=2, refused=1)
    assert [each["code"] for each in refused(installation)] == ["INTERNAL_ERROR"]
    assert installation.ledger.next_event("a") is None


def test_an_entry_whose_job_a_newer_release_has_recorded_waits_behind_the_others(
    installation: Installation,
) -> None:
    """Only that release can tell whether it is the same job; its keeper finds the entry in the list."""
    push(installation, IMAGE)
    import_lists()
    installation.broker.hset("ourvidz:job:a", "v", 99)
    push(installation, IMAGE, IMAGE | {"id": "behind"})
    assert [import_lists().accepted for _ in range(2)] == [0, 1]
    assert [json.loads(raw) for raw in installation.broker.lrange("sdxl_queue", 0, -1)] == [IMAGE]
    assert refused(installation) == []


def test_a_job_without_a_worker_waits(install: Install) -> None:
    """Its caller cannot be told to try again."""
    installation = install(OURVIDZ_WORKER_GRACE_S=0)
    with pytest.raises(WorkerUnavailable):
        dispatch.submit(IMAGE | {"id": "asked"})
    push(installation, IMAGE)
    assert import_lists() == ImportReport(accepted=1)


def test_entries_wait_while_the_ledger_takes_no_jobs(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage in the middle of an entry is not a refusal."""
    push(installation, IMAGE)
    with monkeypatch.context() as patch:
        patch.setattr(type(installation.ledger), "register", _unavailable)
        with pytest.raises(WorkerUnavailable):
            import_lists()
    assert (left(installation), refused(installation)) == (1, [])
    assert import_lists() == ImportReport(accepted=1)


def test_entries_wait_while_there_is_no_capacity_for_new_jobs(install: Install) -> None:
    """The list is their queue then; a refusal would be final."""
    installation = install(OURVIDZ_MAX_QUEUED=1)
    push(installation, IMAGE)
    assert import_lists() == ImportReport(accepted=1)
    push(installation, IMAGE | {"id": "b"})
    installation.app.capacity._measured_at = None
    push(installation, IMAGE | {"id": "c"})
    assert import_lists() == ImportReport()
    assert (left(installation), refused(installation)) == (2, [])


def _unavailable(*_: Any, **__: Any) -> None:
    raise WorkerUnavailable("the job store cannot be reached")


def test_celery_messages_and_other_keys_are_left_alone(installation: Installation) -> None:
    """The names are those of queues of an earlier release, and may be anything of another application."""
    message = {"body": "", "headers": {}, "properties": {}}
    push(installation, message)
    installation.broker.set("wan_queue", "no list")
    assert import_lists() == ImportReport()
    assert [json.loads(raw) for raw in installation.broker.lrange("sdxl_queue", 0, -1)] == [message]
    push(installation, IMAGE)
    # A round ends at a message, which goes to the end of the list: the job is the first entry of the next.
    assert [import_lists().accepted for _ in range(3)] == [0, 1, 0]


def test_no_list_is_read_where_none_is_named(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two installations on one server only one can own the lists."""
    installation = install(OURVIDZ_IMPORT_LISTS="none")
    push(installation, IMAGE)
    assert import_lists() == ImportReport()
    assert left(installation) == 1
    monkeypatch.setenv("OURVIDZ_IMPORT_LISTS", "")
    assert install().app.settings.import_lists == ()
