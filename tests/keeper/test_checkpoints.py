"""The duty that removes the checkpoints of jobs that have ended."""

from __future__ import annotations

import pytest

from ourvidz import dispatch
from ourvidz.errors import StorageError
from ourvidz.jobs.outcome import Outcome
from ourvidz.keeper.duties import remove_checkpoints
from ourvidz.storage.keys import CHECKPOINTS, checkpoint_key
from ourvidz.testing import Eager
from tests.factories import image_job
from tests.keeper.test_attempt_folders import Lease


def test_checkpoints_of_jobs_that_wait_or_run_stay(ourvidz_eager: Eager) -> None:
    """All others are removed, however the job has ended: cancelled in the queue, ended by a sweep, or deleted
    while a worker that had lost it saved once more."""
    app = ourvidz_eager.control
    for job_id in ("queued", "running", "cancelled", "gone"):
        app.store.put(checkpoint_key(job_id, "7.t"), b"state", content_type="application/octet-stream")
    for job_id in ("queued", "running", "cancelled"):
        app.ledger.register(image_job(job_id), priority=6)
    assert app.ledger.claim("running", 1, worker_id="w", lease_s=10, token="t")
    cancelled = app.ledger.get("cancelled")
    assert cancelled is not None
    app.ledger.end(cancelled, outcome=Outcome(status="cancelled"))
    app.store.put(checkpoint_key("newer", "7.t"), b"state", content_type="application/octet-stream")
    app.ledger._connection.client.hset(app.ledger._keys.job("newer"), mapping={"v": "99", "status": "queued"})
    remove_checkpoints(Lease())  # type: ignore[arg-type]
    assert app.store.folders(CHECKPOINTS) == ["newer", "queued", "running"]


def test_the_deletion_of_a_job_removes_its_checkpoints(ourvidz_eager: Eager) -> None:
    """At once: who deletes a picture does not want its latents kept."""
    app = ourvidz_eager.control
    app.ledger.register(image_job("a"), priority=6)
    dispatch.cancel("a")
    app.store.put(checkpoint_key("a", "7.t"), b"state", content_type="application/octet-stream")
    dispatch.delete("a", force=True)
    assert app.store.folders(CHECKPOINTS) == []


def test_checkpoints_that_cannot_be_deleted_keep_no_others(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object whose name a library cannot read is in their way for good."""
    app = ourvidz_eager.control
    for job_id in ("a", "b"):
        app.store.put(checkpoint_key(job_id, "7.t"), b"state", content_type="application/octet-stream")
    delete_folder = app.store.delete_folder

    def fail(folder: str) -> None:
        if folder.endswith("/a"):
            raise StorageError("a name cannot be read")
        delete_folder(folder)

    monkeypatch.setattr(app.store, "delete_folder", fail)
    remove_checkpoints(Lease())  # type: ignore[arg-type]
    assert app.store.folders(CHECKPOINTS) == ["a"]
