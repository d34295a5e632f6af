"""The door: a payload becomes a job, once; and what a caller may do with a job afterwards.

Record first, publish second: a message that gets lost is published again by the sweep.
"""

from __future__ import annotations

from collections.abc import Callable

from ourvidz.celery_settings import JOBS
from ourvidz.dispatch.messages import deliver, publish
from ourvidz.errors import Cancelled, Conflict, NotFound
from ourvidz.jobs.dialects import parse
from ourvidz.jobs.job import ImageJob, Job, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Admission, Record
from ourvidz.storage.keys import asset_folder
from ourvidz.wiring import control


def admit(payload: object, *, make_id: Callable[[], str] | None = None) -> Job:
    """Parse a payload and pass it through the safety gate. Raises `CallerError`; nothing is written."""
    at = control.current()
    job = parse(payload, at.defaults, make_id=make_id)
    at.gate.judge(job)
    return job


def submit(payload: object, *, priority: int = JOBS, make_id: Callable[[], str] | None = None) -> Admission:
    """Admit a payload, record the job, publish its message.

    A repeat of the same id is answered from the record and publishes nothing; with another job under the
    id it is a `Conflict`.
    """
    return enqueue(admit(payload, make_id=make_id), priority=priority)


def enqueue(job: Job, *, priority: int = JOBS, quiet: bool = False) -> Admission:
    """Record an admitted job and publish its message. Of a `quiet` one nobody is told by callback."""
    admission = control.current().ledger.register(job, priority=priority, quiet=quiet)
    if not admission.same:
        raise taken(job.id)
    if admission.created:
        publish(admission.record)
    return admission


def taken(job_id: str) -> Conflict:
    """The refusal of an id under which another job stands."""
    message = f"id: another job already stands under {job_id!r}"
    return Conflict(message, field="id", rule="one id, one job", value=job_id)


def cancel(job_id: str) -> Record:
    """Cancel a job: a queued one never runs, a running one stops before its next step.
    `NotFound`, or `Conflict` when it is finished."""
    ledger = control.current().ledger
    record = ledger.request_cancel(job_id)
    if record.status == "queued":
        outcome = Outcome.failure(Cancelled("the job was cancelled"))
        # Losing this race means a worker claimed or the sweep ended it; both have seen the flag.
        if ledger.end(job_id, run=record.run, fence=record.fence, outcome=outcome):
            deliver(job_id)
    return ledger.get(job_id) or record


def retry(job_id: str) -> Record:
    """Run a failed or cancelled job again under its id. `NotFound`, or `Conflict` in any other state."""
    record = control.current().ledger.reopen(job_id, priority=JOBS)
    publish(record)
    return record


def delete(job_id: str) -> Record:
    """Forget a finished job and its assets. `NotFound`, or `Conflict` while it is not finished."""
    at = control.current()
    record = at.ledger.get(job_id)
    if record is None:
        raise NotFound(f"no job {job_id!r}", field="id", value=job_id)
    folder = _folder(record, at.ledger.job(job_id))
    if folder is not None and record.finished and at.ledger.head(job_id) is None:
        # Before the record: a storage that fails leaves a job that can be deleted again.
        at.store.delete_folder(folder)
    return at.ledger.delete(job_id)


def _folder(record: Record, job: Job | None) -> str | None:
    """Where a job's files lie, also those of an attempt that failed half-way."""
    if isinstance(job, ImageJob | VideoJob) and job.user_id is not None:
        return asset_folder(job.bucket, job.user_id, job.id)
    keys = [asset.key for asset in record.outcome.assets if asset.key] if record.outcome else []
    return keys[0].rpartition("/")[0] if keys else None
