"""Erases all that is stored of one user, step by step; each step can be repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from ourvidz import dispatch, log, uploads
from ourvidz.erasure.store import ErasureStore
from ourvidz.errors import Conflict, NewerRelease, NotFound, StorageError, WorkerUnavailable
from ourvidz.jobs.catalog import QUEUES, READ_BUCKETS, WRITE_BUCKETS
from ourvidz.jobs.fields import Fields
from ourvidz.records.record import Record
from ourvidz.wiring import control

WAIT_S = 10.0
"""How long an erasure waits for running jobs to stop."""
POLL_S = 0.1

_log = log.get(__name__)


@dataclass(slots=True)
class ErasureReport:
    """What one call has erased.

    Jobs with all that belongs to them; stored files that belonged to no job any more, uploaded references
    included; callbacks in the inbox; refused entries of raw lists; rows of GPU usage, which count for nobody
    now. `running` jobs have not stopped yet, `unreadable` ones cannot be deleted by this release.
    `rewritten`: the Redis server has written its file anew since. `complete`: nothing is left.
    """

    user_id: str
    jobs: int = 0
    files: int = 0
    callbacks: int = 0
    refused_imports: int = 0
    usage_rows: int = 0
    running: int = 0
    unreadable: int = 0
    rewritten: bool = False
    complete: bool = False


def erase_user(
    user_id: str, *, wait_s: float = WAIT_S, checkpoint: Callable[[], None] = lambda: None
) -> ErasureReport:
    """Erase all that is stored of a user. Its running jobs are cancelled first; what has not stopped within
    `wait_s` seconds, or fails, is left to a keeper, or to the next call. `checkpoint` is called in between.

    Raises `StorageError` and `WorkerUnavailable`; then a keeper goes on.
    """
    app, report = control.current(), ErasureReport(user_id)
    erasures = ErasureStore(app.ledger.connection)
    erasures.begin(user_id)
    if app.inbox is not None:
        job_ids = set(app.ledger.index_members(f"index:user:{user_id}"))
        report.callbacks = app.inbox.delete_jobs(job_ids)
    job_ids = _delete_jobs(report, time.monotonic() + wait_s, checkpoint)
    _delete_files(report, checkpoint)
    report.refused_imports = _delete_refused_imports(user_id)
    report.usage_rows = erasures.anonymise_usage(user_id)
    erasures.remove_counts(user_id)
    # Last: a callback that was on its way arrives before the jobs are gone, or soon after.
    if app.inbox is not None:
        report.callbacks += app.inbox.delete_user(user_id, job_ids)
    _forget_encoded()
    if report.running or report.unreadable:
        return report
    erasures.end(user_id)
    report.rewritten = erasures.rewrite(beat=checkpoint)
    report.complete = report.rewritten
    return report


def resume_erasures(checkpoint: Callable[[], None] = lambda: None) -> int:
    """Go on with erasures that have begun and not ended, and write the server's file anew where that is due.
    Returns the number of users of whom nothing is left now."""
    erasures, ended = ErasureStore(control.current().ledger.connection), 0
    for user_id in erasures.pending():
        checkpoint()
        try:
            report = erase_user(user_id, wait_s=0, checkpoint=checkpoint)
            ended += not (report.running or report.unreadable)
        except WorkerUnavailable:
            raise
        except StorageError as error:
            _log.warning("erasure_postponed", reason=error.message)
    if erasures.rewrite_due:
        erasures.rewrite(beat=checkpoint)
    return ended


def _delete_jobs(report: ErasureReport, deadline: float, checkpoint: Callable[[], None]) -> set[str]:
    """Cancel and delete the jobs of a user, until none is left or only running ones at the deadline. Returns
    their ids."""
    app, seen = control.current(), set[str]()
    while True:
        job_ids = app.ledger.index_members(f"index:user:{report.user_id}")
        report.running = report.unreadable = 0
        for job_id in job_ids:
            checkpoint()
            seen.add(job_id)
            result = _delete_job(report.user_id, job_id)
            report.jobs += result == "deleted"
            report.running += result == "running"
            report.unreadable += result == "unreadable"
        deleted_some = len(job_ids) > report.running + report.unreadable
        if not (deleted_some or (report.running and time.monotonic() < deadline)):
            return seen
        if not deleted_some:
            time.sleep(POLL_S)


def _delete_job(user_id: str, job_id: str) -> str:
    """Delete one job: `deleted`, `running`, `unreadable`, or `gone`."""
    app = control.current()
    (record,) = app.ledger.read_each([job_id])
    if record is None:
        app.ledger.drop_absent(f"index:user:{user_id}", [job_id])
        return "gone"
    if not isinstance(record, Record):
        return "unreadable"
    try:
        if not record.finished and not dispatch.cancel(job_id).finished:
            return "running"
        dispatch.delete(job_id, force=True)
    except Conflict:
        # It ended, or a retry has begun, in between: the next pass sees which.
        return "running"
    except NotFound:
        return "gone"
    except NewerRelease:
        return "unreadable"
    return "deleted"


def _delete_files(report: ErasureReport, checkpoint: Callable[[], None]) -> None:
    """Delete what the storage still has of a user: files of jobs without a record, and uploads."""
    store = control.current().store
    for bucket in dict.fromkeys((*WRITE_BUCKETS, *READ_BUCKETS)):
        folder = f"{bucket}/{report.user_id}"
        checkpoint()
        if report.running:
            # A job that still runs owns its files; uploads go with the others then.
            continue
        report.files += sum(1 for _ in store.list_files(folder))
        store.delete_folder(folder)
    uploads.delete_markers(store, report.user_id)


def _delete_refused_imports(user_id: str) -> int:
    """Remove the refused entries of raw lists that name a user. Returns how many."""
    ledger, removed = control.current().ledger, 0
    for refused in ledger.refused_imports():
        if _user_of(refused.entry) == user_id:
            removed += ledger.take_refused_import(refused, back=False)
    return removed


def _user_of(entry: str) -> str | None:
    """The user that a refused entry names; None for what is no job."""
    try:
        return Fields(json.loads(entry)).text("user_id", "metadata.user_id")
    except Exception:  # noqa: BLE001  a refused entry may hold anything
        return None


def _forget_encoded() -> None:
    """Tell every worker to drop what it keeps of prompts and references."""
    for worker in control.current().ledger.online_workers():
        if worker.family in QUEUES:
            dispatch.flush(worker.id)
