"""The one ladder: which error retries, which fails, and what the caller is told."""

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
from ourvidz.jobs.outcome import Outcome
from ourvidz.tasks import sdxl
from ourvidz.testing import Eager
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services

JOB = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me", "config": {"steps": 1}}

Story = Callable[[Any, Any, Services], Outcome]


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Replace what happens inside the job, and nothing around it."""
    return lambda told: monkeypatch.setattr(sdxl, "generate_images", told)


def failing(errors: list[Exception]) -> Story:
    """Fails with one error after the other, then works."""

    def tell(job: Any, run: Any, use: Services) -> Outcome:
        if errors:
            raise errors.pop(0)
        return Outcome(status="completed")

    return tell


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
    ourvidz_eager: Eager, story: Callable[[Story], None], error: Exception, attempts: int
) -> None:
    """How often a job is tried again stands on the error class and nowhere else."""
    left = [error] * 9
    story(failing(left))
    ourvidz_eager.submit(JOB)
    record = ourvidz_eager.record("a")
    assert record.status == "failed"
    assert 9 - len(left) == record.attempt == attempts
    last = ourvidz_eager.callbacks.of("a")[-1].payload
    code = error.code if isinstance(error, OurvidzError) else "INTERNAL_ERROR"
    assert (last["status"], last["error"]["code"], last["metadata"]["error_type"]) == ("failed", code, code)
    assert last["assets"] == []


def test_a_retry_that_works_completes(ourvidz_eager: Eager, story: Callable[[Story], None]) -> None:
    """One processing for each attempt, the second with its number, and one terminal callback."""
    story(failing([OutOfMemory("no room")]))
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.callbacks.statuses("a") == ["processing", "processing", "completed"]
    told = [one.payload["metadata"].get("attempt") for one in ourvidz_eager.callbacks.of("a")[:2]]
    assert told == [None, 2]
    assert [one.payload["sequence"] for one in ourvidz_eager.callbacks.of("a")] == [1, 2, 3]


def test_an_unknown_failure_tells_the_caller_no_internals(
    ourvidz_eager: Eager, story: Callable[[Story], None]
) -> None:
    """Paths and tracebacks are for our log."""
    story(failing([RuntimeError("a secret path /home/x")]))
    ourvidz_eager.submit(JOB)
    assert "/home" not in str(ourvidz_eager.callbacks.of("a")[-1].payload)


def test_an_operators_error_names_nothing_of_this_machine(
    ourvidz_eager: Eager, story: Callable[[Story], None]
) -> None:
    """Callers need not know where the models lie."""
    story(failing([ModelLoadError("/secret/path is missing")] * 2))
    ourvidz_eager.submit(JOB)
    last = ourvidz_eager.callbacks.of("a")[-1].payload
    assert last["error"]["code"] == "MODEL_LOAD_ERROR"
    assert "/secret" not in str(last)


def test_a_lost_fence_commits_nothing(ourvidz_eager: Eager, story: Callable[[Story], None]) -> None:
    """Somebody else has the job: this attempt has no say."""

    def lose(job: Any, run: Any, use: Services) -> Outcome:
        record = ourvidz_eager.record("a")
        ourvidz_eager.control.ledger.rescue("a", fence=record.fence)
        raise FenceLost("a")

    story(lose)
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.record("a").status == "queued"
    assert ourvidz_eager.callbacks.statuses("a") == ["processing"]


def test_a_late_result_changes_nothing(ourvidz_eager: Eager, story: Callable[[Story], None]) -> None:
    """A worker that froze through its lease and then finishes must not overwrite its successor."""

    def late(job: Any, run: Any, use: Services) -> Outcome:
        ourvidz_eager.control.ledger.rescue("a", fence=ourvidz_eager.record("a").fence)
        return Outcome(status="completed", metadata={"late": True})

    story(late)
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.record("a").status == "queued"
    assert "completed" not in ourvidz_eager.callbacks.statuses("a")


def test_a_cancel_during_the_run_ends_cancelled(ourvidz_eager: Eager, story: Callable[[Story], None]) -> None:
    """On the record it is cancelled, to the caller failed with CANCELLED; a retry of it runs."""

    def cancelled(job: Any, run: Any, use: Services) -> Outcome:
        dispatch.cancel("a")
        run.step(1, 2)
        raise AssertionError("the step should have stopped this run")

    story(cancelled)
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.record("a").status == "cancelled"
    last = ourvidz_eager.callbacks.of("a")[-1].payload
    assert (last["status"], last["error"]["code"]) == ("failed", "CANCELLED")
    story(failing([]))
    dispatch.retry("a")
    assert (ourvidz_eager.record("a").status, ourvidz_eager.record("a").run) == ("completed", 2)


def test_the_same_id_twice_is_one_job(ourvidz_eager: Eager, story: Callable[[Story], None]) -> None:
    """A caller that repeats a request after a timeout must not pay twice."""
    story(failing([]))
    assert ourvidz_eager.submit(JOB).created
    assert not ourvidz_eager.submit(JOB).created
    assert ourvidz_eager.callbacks.statuses("a") == ["processing", "completed"]
    with pytest.raises(Conflict):
        ourvidz_eager.submit(JOB | {"prompt": "another hill"})


def test_a_message_of_a_finished_job_is_ignored(ourvidz_eager: Eager, story: Callable[[Story], None]) -> None:
    """The sweep may publish a message too many."""
    story(failing([]))
    ourvidz_eager.submit(JOB)
    dispatch.publish(ourvidz_eager.record("a"))
    assert ourvidz_eager.callbacks.statuses("a") == ["processing", "completed"]


def test_deleting_a_failed_job_forgets_what_it_had_stored(
    ourvidz_eager: Eager, story: Callable[[Story], None]
) -> None:
    """The picture of an attempt that failed half-way is nobody's outcome, but it is the job's file."""

    def half_way(job: Any, run: Any, use: Services) -> Outcome:
        run.put(use.store, "workspace-temp/me/a/0.png", b"half", "image/png")
        raise StorageError("the disk is full")

    story(half_way)
    ourvidz_eager.submit(JOB)
    assert (ourvidz_eager.storage / "workspace-temp/me/a/0.png").is_file()
    dispatch.delete("a")
    assert not (ourvidz_eager.storage / "workspace-temp/me/a").exists()


def test_deleting_forgets_the_job_and_its_files(ourvidz_eager: Eager) -> None:
    """The caller has copied what it wants."""
    ourvidz_eager.submit(JOB)
    stored = ourvidz_eager.storage / "workspace-temp/me/a/0.png"
    assert stored.is_file()
    dispatch.delete("a")
    assert not stored.exists()
    assert ourvidz_eager.control.ledger.get("a") is None
