"""The retry policy: which error is retried, which fails the job, and what the caller sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.errors import (
    Conflict,
    I2IPipelineError,
    ModelLoadError,
    OurvidzError,
    OutOfMemory,
    SettingsError,
    StorageError,
)
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.testing import Eager
from ourvidz.workflows import image
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services
from tests.monitor import monitored

JOB = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me", "config": {"steps": 1}}

Workflow = Callable[[Any, Any, Services], Outcome]
Replace = Callable[[Workflow], None]


@pytest.fixture
def replace_workflow(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Replace the workflow of SDXL jobs, and nothing around it."""
    return lambda workflow: monkeypatch.setattr(image, "generate_images", workflow)


def failing(errors: list[Exception]) -> Workflow:
    """A workflow that raises one error after the other, then completes."""

    def workflow(job: Any, run: Any, services: Services) -> Outcome:
        if errors:
            raise errors.pop(0)
        return Outcome(status="completed")

    return workflow


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (OutOfMemory("no room"), 2),
        (ModelLoadError("a file is missing"), 2),
        (StorageError("the disk is full"), 1),
        (I2IPipelineError("cannot"), 1),
        (SettingsError("OURVIDZ_MODELS: wrong"), 1),
        (RuntimeError("a secret path /home/x"), 1),
    ],
)
def test_each_error_gets_its_attempts_and_then_fails(
    ourvidz_eager: Eager, replace_workflow: Replace, error: Exception, attempts: int
) -> None:
    """The number of attempts is an attribute of the error class."""
    left = [error] * 9
    replace_workflow(failing(left))
    ourvidz_eager.submit(JOB)
    record = ourvidz_eager.record("a")
    assert record.status == "failed"
    assert 9 - len(left) == record.attempt == attempts
    last = ourvidz_eager.callbacks.of("a")[-1].payload
    code = error.code if isinstance(error, OurvidzError) else "INTERNAL_ERROR"
    assert (last["status"], last["error"]["code"], last["metadata"]["error_type"]) == ("failed", code, code)
    assert last["assets"] == []


def test_a_successful_retry_completes_the_job(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """One `processing` for each attempt, the second with its number, and one terminal callback."""
    replace_workflow(failing([OutOfMemory("no room")]))
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.callbacks.statuses("a") == ["processing", "processing", "completed"]
    attempts = [each.payload["metadata"].get("attempt") for each in ourvidz_eager.callbacks.of("a")[:2]]
    assert attempts == [None, 2]
    assert [each.payload["sequence"] for each in ourvidz_eager.callbacks.of("a")] == [1, 2, 3]


def test_an_unknown_error_shows_the_caller_no_internals(
    ourvidz_eager: Eager, replace_workflow: Replace
) -> None:
    """Paths and tracebacks are logged only."""
    replace_workflow(failing([RuntimeError("a secret path /home/x")]))
    ourvidz_eager.submit(JOB)
    assert "/home" not in str(ourvidz_eager.callbacks.of("a")[-1].payload)


def test_an_operator_error_shows_the_caller_no_paths(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """Callers do not need to know where the models are."""
    replace_workflow(failing([ModelLoadError("/secret/path is missing")] * 2))
    ourvidz_eager.submit(JOB)
    last = ourvidz_eager.callbacks.of("a")[-1].payload
    assert last["error"]["code"] == "MODEL_LOAD_ERROR"
    assert "/secret" not in str(last)


def test_a_lost_fence_commits_nothing(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """Another worker has claimed the job."""

    def lose_fence(job: Any, run: Any, services: Services) -> Outcome:
        record = ourvidz_eager.record("a")
        ourvidz_eager.control.ledger.rescue(record)
        raise FenceLost("a")

    replace_workflow(lose_fence)
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.record("a").status == "queued"
    assert ourvidz_eager.callbacks.statuses("a") == ["processing"]


def test_a_late_result_changes_nothing(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """A worker whose lease expired cannot overwrite the outcome of the next attempt."""

    def late(job: Any, run: Any, services: Services) -> Outcome:
        ourvidz_eager.control.ledger.rescue(ourvidz_eager.record("a"))
        return Outcome(status="completed", metadata={"late": True})

    replace_workflow(late)
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.record("a").status == "queued"
    assert "completed" not in ourvidz_eager.callbacks.statuses("a")


def test_a_cancel_during_the_run_ends_cancelled(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """The record is `cancelled`, the callback `failed` with the code CANCELLED, and a retry is possible."""

    def cancelled(job: Any, run: Any, services: Services) -> Outcome:
        dispatch.cancel("a")
        while True:
            run.step(1, 2)

    replace_workflow(cancelled)
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.record("a").status == "cancelled"
    last = ourvidz_eager.callbacks.of("a")[-1].payload
    assert (last["status"], last["error"]["code"]) == ("failed", "CANCELLED")
    replace_workflow(failing([]))
    dispatch.retry("a")
    assert (ourvidz_eager.record("a").status, ourvidz_eager.record("a").run) == ("completed", 2)


def test_submitting_an_id_twice_runs_one_job(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """A caller may repeat a request after a timeout."""
    replace_workflow(failing([]))
    assert ourvidz_eager.submit(JOB).created
    assert not ourvidz_eager.submit(JOB).created
    assert ourvidz_eager.callbacks.statuses("a") == ["processing", "completed"]
    with pytest.raises(Conflict):
        ourvidz_eager.submit(JOB | {"prompt": "another hill"})


def test_the_message_of_an_ended_job_is_ignored(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """The sweep may publish duplicate messages."""
    replace_workflow(failing([]))
    ourvidz_eager.submit(JOB)
    dispatch.publish(ourvidz_eager.record("a"))
    assert ourvidz_eager.callbacks.statuses("a") == ["processing", "completed"]


def test_a_job_makes_four_calls_to_the_server_beside_its_delivery(
    ourvidz_eager: Eager, replace_workflow: Replace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were seventeen, and the child of a worker waits for each. Steps that take long report on top."""
    monkeypatch.setattr("ourvidz.workflows.run.REPORT_INTERVAL_S", 60.0)

    def two_files(job: Any, run: Any, services: Services) -> Outcome:
        run.step(0, 1)
        run.step(1, 1)
        keys = [f"workspace-temp/me/a/{name}" for name in ("0.png", "0.thumb.webp")]
        for key in keys:
            run.put(services.store, key, b"file", "image/png")
        asset = Asset(type="image", key=keys[0], thumbnail_key=keys[1])
        return Outcome(status="completed", assets=(asset,))

    replace_workflow(two_files)
    ourvidz_eager.submit(JOB | {"id": "earlier"})
    with monitored(ourvidz_eager.control.ledger.url) as seen:
        ourvidz_eager.submit(JOB)
    # Without what a shim reads once a second.
    verbs = [call for call in seen.commands if call.islower() and call != "now"]
    of_job = [verb for verb in verbs if "event" not in verb and "deliver" not in verb]
    assert of_job == ["register", "claim", "step", "end"]
    assert ourvidz_eager.record("a").status == "completed"


def test_a_failed_attempt_leaves_no_files(ourvidz_eager: Eager, replace_workflow: Replace) -> None:
    """They are listed in no outcome, so nobody would ever read or delete them."""

    def half_way(job: Any, run: Any, services: Services) -> Outcome:
        run.put(services.store, "workspace-temp/me/a/0.png", b"half", "image/png")
        raise StorageError("the disk is full")

    replace_workflow(half_way)
    ourvidz_eager.submit(JOB)
    assert [path for path in ourvidz_eager.storage.rglob("*") if path.is_file()] == []
    assert ourvidz_eager.control.ledger.dead_attempt_folders() == []


def test_deleting_a_completed_job_deletes_its_record_and_its_files(ourvidz_eager: Eager) -> None:
    """The record and the files are removed together."""
    ourvidz_eager.submit(JOB)
    stored = ourvidz_eager.storage / "workspace-temp/me/a/0.png"
    assert stored.is_file()
    dispatch.delete("a")
    assert not stored.exists()
    assert ourvidz_eager.control.ledger.get("a") is None
