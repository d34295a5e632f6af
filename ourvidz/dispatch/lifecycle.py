"""What a caller may do with a submitted job: cancel it, retry it, delete it."""

from __future__ import annotations

from collections.abc import Callable

from ourvidz import log
from ourvidz.celery_settings import JOBS
from ourvidz.dispatch.messages import publish
from ourvidz.errors import (
    Cancelled,
    Conflict,
    InvalidParameters,
    NewerRelease,
    NotFound,
    StorageError,
    WorkerUnavailable,
)
from ourvidz.jobs.catalog import WRITE_BUCKETS
from ourvidz.jobs.job import ImageJob, Job, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.records.allowances import JobLimits
from ourvidz.records.record import Record
from ourvidz.storage.keys import asset_folder, checkpoints_folder, split_key
from ourvidz.wiring import control

RESUME_DELETION_S = 60.0
"""How long after its begin a deletion is taken up by a keeper."""
JOB_SEGMENTS = 3
"""Segments of the key of a job's folder: bucket, user and job."""

_log = log.get(__name__)


def cancel(job_id: str) -> Record:
    """Cancel a job: a queued one never runs, a running one stops before its next step.

    Returns the record afterwards. Raises `NotFound`, or `Conflict` when the job is finished.
    """
    ledger = control.current().ledger
    record = ledger.request_cancel(job_id)
    if record.status == "queued":
        outcome = Outcome.failure(Cancelled("the job was cancelled"))
        # Losing this race means a worker claimed or the sweep ended it; both have seen the flag.
        ledger.end(record, outcome=outcome)
    return ledger.get(job_id) or record


def retry(job_id: str, *, limits: Callable[[Job], JobLimits] | None = None) -> Record:
    """Run a failed or cancelled job again under its id, as its next run. Returns the queued record.

    Raises `NotFound`, or `Conflict` in any other state; `RateLimited` when `limits` refuse another run.
    """
    ledger = control.current().ledger
    job = _readable_job(job_id) if limits else None
    record = ledger.reopen(job_id, priority=JOBS, limits=limits(job) if limits and job else None)
    publish(record)
    return record


def delete(job_id: str, *, force: bool = False) -> Record:
    """Delete a finished job: its assets, its callbacks in the local inbox, and its record, which is returned.
    With `force`, callbacks that are
    still pending are cancelled.

    It cannot run again from the first step on. A deletion that is interrupted can be repeated, and a keeper
    ends it. Raises `NotFound`, or `Conflict` while the job is not finished or its last callback is pending.
    """
    app = control.current()
    record = app.ledger.begin_deletion(job_id, force=force)
    for folder in [*_folders(record), checkpoints_folder(job_id)]:
        # Before the record, which names it: whatever fails or dies here is repeated.
        app.store.delete_folder(folder)
    if app.inbox is not None:
        app.inbox.delete_jobs([job_id])
    return app.ledger.delete(job_id)


def resume_deletions(checkpoint: Callable[[], None] = lambda: None) -> int:
    """Go on with deletions that began a minute ago or longer and have not ended: their process died, or the
    storage failed. Returns the number of jobs that are deleted now. `checkpoint` is called before each."""
    deleted = 0
    for job_id in control.current().ledger.deletions(older_than_s=RESUME_DELETION_S):
        checkpoint()
        try:
            delete(job_id)
            deleted += 1
        except NotFound:
            continue
        except WorkerUnavailable:
            raise
        except StorageError as error:
            _log.warning("deletion_postponed", job_id=job_id, reason=error.message)
        except Exception:  # noqa: BLE001  a job that cannot be deleted must not keep the others
            _log.exception("deletion_failed", job_id=job_id)
    return deleted


def delete_assets(key: str) -> None:
    """Delete one stored file, or with the key of a job's folder all of its files, whether or not the job has
    a record. Safe to call twice.

    Raises `InvalidParameters` for another key, `Conflict` while the job is not finished.
    """
    app, segments = control.current(), split_key(key)
    if segments[0] not in WRITE_BUCKETS or len(segments) not in (JOB_SEGMENTS, JOB_SEGMENTS + 1):
        rule = "{bucket}/{user}/{job} or {bucket}/{user}/{job}/{file} in a bucket of jobs"
        raise InvalidParameters("This is not the key of an asset.", field="key", rule=rule, value=key)
    record = app.ledger.get(segments[2])
    if record is not None and record.user_id == segments[1] and not record.finished:
        raise Conflict(f"a {record.status} job still writes its files", field="key", value=key)
    if len(segments) == JOB_SEGMENTS:
        app.store.delete_folder(key)
    else:
        app.store.delete(key)


def _folders(record: Record) -> list[str]:
    """Return the storage folders that may hold files of a job, also if its document is gone or cannot be
    read."""
    job = _readable_job(record.job_id)
    if isinstance(job, ImageJob | VideoJob) and job.user_id is not None:
        return [asset_folder(job.bucket, job.user_id, job.id)]
    keys = [asset.key for asset in record.outcome.assets if asset.key] if record.outcome else []
    if keys:
        return [keys[0].rpartition("/")[0]]
    if job is not None or record.user_id is None:
        return []
    return [asset_folder(bucket, record.user_id, record.job_id) for bucket in WRITE_BUCKETS]


def _readable_job(job_id: str) -> Job | None:
    """The job itself; None if its document is gone or this release cannot read it."""
    try:
        return control.current().ledger.job(job_id)
    except (NewerRelease, ValueError):
        return None
