"""Taking jobs in over HTTP: what all submission routes do."""

from __future__ import annotations

from typing import Any

from ourvidz import dispatch
from ourvidz.celery_settings import JOBS
from ourvidz.jobs.job import Job
from ourvidz.ledger.record import Admission
from ourvidz.web.attendance import WorkerAvailability
from ourvidz.wiring import control


def look(jobs: list[Job], attendance: WorkerAvailability) -> None:
    """What `take` would refuse of these, before any of them is taken."""
    ledger, standing = control.current().ledger, dict[str, tuple[str, dict[str, Any]]]()
    for job in jobs:
        record = ledger.get(job.id)
        if record is not None:
            standing[job.id] = record.fingerprint, record.facts
        elif attendance.missing(job.queue, ledger):
            raise attendance.refusal(job.queue)
        if not job.repeats(*standing.setdefault(job.id, (job.fingerprint(), job.facts()))):
            raise dispatch.taken(job.id)


def take(job: Job, attendance: WorkerAvailability, *, priority: int = JOBS, quiet: bool = False) -> Admission:
    """Record and publish an admitted job. `WorkerUnavailable` for a new one that nobody would run,
    `Conflict` when another job stands under its id."""
    ledger = control.current().ledger
    if attendance.missing(job.queue, ledger) and ledger.get(job.id) is None:
        raise attendance.refusal(job.queue)
    return dispatch.enqueue(job, priority=priority, quiet=quiet)
