"""Cancel, retry and delete."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.errors import Conflict, InvalidParameters, NotFound, StorageError
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.records.record import Claim
from tests.dispatch.conftest import Installation

JOB = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
KEY = "workspace-temp/me/a/0.png"


def claim(installation: Installation, run: int = 1) -> Claim:
    """Claim the job as a worker would."""
    won: Claim | None = installation.ledger.claim("a", run, worker_id="w", lease_s=60, token=f"t{run}")
    assert won is not None
    return won


def complete(installation: Installation) -> None:
    """Run the job to its end; its file is in the storage, its callback delivered."""
    won = claim(installation)
    installation.app.store.put(KEY, b"png", content_type="image/png")
    outcome = Outcome(status="completed", assets=(Asset(type="image", key=KEY),))
    assert installation.ledger.end(won, outcome=outcome)


def settle_callbacks(installation: Installation) -> None:
    """Deliver every pending callback of the job."""
    while (event := installation.ledger.lease_event("a", lease_s=10, token="d")) is not None:
        installation.ledger.mark_delivered(event, status=200)


def fail_job(installation: Installation) -> None:
    """Run the job to a failure; its callback is delivered."""
    outcome = Outcome.failure(StorageError("the disk is full"))
    assert installation.ledger.end(claim(installation), outcome=outcome)
    settle_callbacks(installation)


def test_cancelling_a_queued_job_ends_it_at_once(installation: Installation) -> None:
    """It never runs, and its terminal callback is sent."""
    dispatch.submit(JOB)
    record = dispatch.cancel("a")
    assert (record.status, record.outcome.error.code) == ("cancelled", "CANCELLED")
    assert installation.ledger.due_deliveries() == ["a"]


def test_cancelling_a_running_job_sets_its_flag(installation: Installation) -> None:
    """The worker stops the job before its next step."""
    dispatch.submit(JOB)
    claim(installation)
    record = dispatch.cancel("a")
    assert (record.status, record.cancel_requested) == ("processing", True)


def test_a_finished_job_cannot_be_cancelled(installation: Installation) -> None:
    """`cancel` raises a conflict."""
    dispatch.submit(JOB)
    complete(installation)
    with pytest.raises(Conflict):
        dispatch.cancel("a")
    with pytest.raises(NotFound):
        dispatch.cancel("another")


def test_a_retry_starts_the_next_run(installation: Installation) -> None:
    """The job is published again with the same id."""
    dispatch.submit(JOB)
    dispatch.cancel("a")
    record = dispatch.retry("a")
    assert (record.status, record.run, record.attempt) == ("queued", 2, 0)
    assert len(installation.messages("sdxl_queue")) == 2
    with pytest.raises(Conflict):
        dispatch.retry("a")


def test_deleting_a_job_deletes_its_files(installation: Installation) -> None:
    """Jobs whose terminal callback is undelivered are not deleted, since it names the files."""
    dispatch.submit(JOB)
    with pytest.raises(Conflict):
        dispatch.delete("a")
    complete(installation)
    with pytest.raises(Conflict):
        dispatch.delete("a")
    assert installation.app.store.get(KEY) == b"png"
    settle_callbacks(installation)
    dispatch.delete("a")
    assert installation.ledger.get("a") is None
    with pytest.raises(NotFound):
        installation.app.store.get(KEY)
    with pytest.raises(NotFound):
        dispatch.delete("a")


def fail_and_settle(installation: Installation) -> None:
    """Run the job to a failure that may be retried; the file of its attempt is in the storage."""
    installation.app.store.put(KEY, b"png", content_type="image/png")
    assert installation.ledger.end(claim(installation), outcome=Outcome(status="cancelled"))
    settle_callbacks(installation)


def test_a_job_that_is_being_deleted_cannot_run_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry at that moment would lose the files of its run."""
    dispatch.submit(JOB)
    fail_and_settle(installation)
    delete_folder = installation.app.store.delete_folder

    def retry_meanwhile(folder: str) -> None:
        with pytest.raises(Conflict, match="deleting"):
            dispatch.retry("a")
        delete_folder(folder)

    monkeypatch.setattr(installation.app.store, "delete_folder", retry_meanwhile)
    dispatch.delete("a")
    assert installation.ledger.get("a") is None
    assert dispatch.submit(JOB).created, "its id is free"


@pytest.mark.parametrize("died", ["before the files", "after the files"])
def test_a_deletion_that_was_interrupted_is_ended_by_a_keeper(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    """Also when a callback was replayed and the retention has passed meanwhile."""
    dispatch.submit(JOB)
    complete(installation)
    settle_callbacks(installation)
    target, verb = (
        (installation.app.store, "delete_folder")
        if died == "before the files"
        else (installation.ledger, "delete")
    )

    def fail(*_: Any) -> None:
        raise StorageError("the process died")

    monkeypatch.setattr(target, verb, fail)
    with pytest.raises(StorageError):
        dispatch.delete("a")
    monkeypatch.undo()
    assert installation.ledger.purge(older_than_s=0) == 0
    assert installation.ledger.replay(installation.ledger.list_events("delivered")[0].event_id)
    assert dispatch.resume_deletions() == 0, "it may still go on by itself"
    monkeypatch.setattr("ourvidz.dispatch.lifecycle.RESUME_DELETION_S", 0)
    assert dispatch.resume_deletions() == 1
    assert installation.ledger.get("a") is None
    with pytest.raises(NotFound):
        installation.app.store.get(KEY)
    assert dispatch.resume_deletions() == 0


def test_only_a_job_whose_record_says_so_is_deleted(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of the former release ended the deletion, and the id was used again."""
    monkeypatch.setattr("ourvidz.dispatch.lifecycle.RESUME_DELETION_S", 0)
    dispatch.submit(JOB)
    fail_and_settle(installation)
    installation.ledger.begin_deletion("a")
    keys = installation.ledger._keys
    installation.ledger._connection.client.hdel(keys.job("a"), "deleting")
    assert dispatch.resume_deletions() == 0
    assert installation.ledger.get("a") is not None
    assert installation.ledger.deletions(older_than_s=0) == []


def test_a_deletion_whose_storage_is_away_is_tried_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One storage that fails does not keep the other jobs' deletions."""
    monkeypatch.setattr("ourvidz.dispatch.lifecycle.RESUME_DELETION_S", 0)
    dispatch.submit(JOB)
    complete(installation)
    settle_callbacks(installation)

    def fail(*_: Any) -> None:
        raise StorageError("the disk is away")

    with monkeypatch.context() as away:
        away.setattr(installation.app.store, "delete_folder", fail)
        with pytest.raises(StorageError):
            dispatch.delete("a")
        assert dispatch.resume_deletions() == 0
    assert dispatch.resume_deletions() == 1


def test_a_deletion_gives_way_to_a_retry_by_the_former_release(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows no mark, so the job runs again: its files must not be deleted while it does."""
    monkeypatch.setattr("ourvidz.dispatch.lifecycle.RESUME_DELETION_S", 0)
    dispatch.submit(JOB)
    complete(installation)
    settle_callbacks(installation)
    installation.ledger.begin_deletion("a")
    installation.broker.hset("ourvidz:job:a", "status", "queued")
    with pytest.raises(Conflict):
        dispatch.delete("a")
    assert dispatch.resume_deletions() == 0
    assert installation.app.store.get(KEY) == b"png"
    assert not installation.broker.hexists("ourvidz:job:a", "deleting")


@pytest.mark.parametrize("damage", ["newer", "damaged", "no record", "no document"])
def test_an_interrupted_deletion_that_cannot_be_ended_keeps_no_other(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Callers were promised that their files go."""
    monkeypatch.setattr("ourvidz.dispatch.lifecycle.RESUME_DELETION_S", 0)
    for job_id in ("a", "b"):
        dispatch.submit(JOB | {"id": job_id})
        dispatch.cancel(job_id)
        installation.ledger.begin_deletion(job_id, force=True)
    if damage == "newer":
        installation.broker.hset("ourvidz:job:a", "v", 99)
    elif damage == "damaged":
        installation.broker.hset("ourvidz:job:a", "fence", "many")
    elif damage == "no record":
        installation.broker.set("ourvidz:job:a", "text")
    else:
        installation.broker.set("ourvidz:doc:a", "{")
    assert dispatch.resume_deletions() == (2 if damage == "no document" else 1)
    assert installation.ledger.get("b") is None


def test_a_job_is_kept_if_its_files_cannot_be_deleted(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion can be repeated; otherwise the files would remain."""
    dispatch.submit(JOB)
    complete(installation)
    settle_callbacks(installation)

    def fail(*_: Any) -> None:
        raise StorageError("the disk is away")

    monkeypatch.setattr(installation.app.store, "delete_folder", fail)
    with pytest.raises(StorageError):
        dispatch.delete("a")
    monkeypatch.undo()
    assert installation.ledger.get("a") is not None


def test_a_forced_deletion_cancels_pending_callbacks(installation: Installation) -> None:
    """A receiver that is down must not keep a user's files alive. A delivery under way changes nothing."""
    dispatch.submit(JOB)
    complete(installation)
    event = installation.ledger.lease_event("a", lease_s=10, token="d")
    dispatch.delete("a", force=True)
    installation.ledger.mark_delivered(event, status=200)
    assert installation.ledger.get("a") is None
    assert not installation.app.store.exists(KEY)
    assert installation.ledger.list_events("pending") == []
    assert installation.ledger.due_deliveries() == []
    dispatch.submit(JOB)
    with pytest.raises(Conflict):
        dispatch.delete("a", force=True)


def test_files_are_deleted_in_every_bucket_if_the_document_is_gone(installation: Installation) -> None:
    """The document of a large job that failed is kept for a day; a file may be left of its attempts."""
    dispatch.submit(JOB | {"bucket": "sdxl_image_fast"})
    fail_job(installation)
    installation.app.store.put("sdxl_image_fast/me/a/0.png", b"png", content_type="image/png")
    installation.broker.delete(f"{installation.app.settings.key_prefix}doc:a")
    dispatch.delete("a")
    assert not installation.app.store.exists("sdxl_image_fast/me/a/0.png")


def test_assets_can_be_deleted_after_the_record_is_purged(installation: Installation) -> None:
    """Files are kept longer than records."""
    dispatch.submit(JOB)
    with pytest.raises(Conflict):
        dispatch.delete_assets(KEY)
    complete(installation)
    settle_callbacks(installation)
    assert installation.ledger.purge(older_than_s=-1) == 1
    assert installation.app.store.exists(KEY)
    dispatch.delete_assets(KEY)
    assert not installation.app.store.exists(KEY)
    installation.app.store.put(KEY, b"png", content_type="image/png")
    dispatch.delete_assets("workspace-temp/me/a")
    assert not installation.app.store.exists(KEY)
    dispatch.delete_assets("workspace-temp/me/a")


@pytest.mark.parametrize(
    "key", ["workspace-temp/me", "workspace-temp", "user-library/me/a", "workspace-temp/me/a/b/c", "../me/a"]
)
def test_only_assets_are_deleted_by_key(installation: Installation, key: str) -> None:
    """Not all files of a user by a mistake, and no reference of theirs."""
    with pytest.raises(InvalidParameters):
        dispatch.delete_assets(key)
