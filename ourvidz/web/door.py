"""Taking jobs in over HTTP: what both submission routes do."""

from __future__ import annotations

from ourvidz import dispatch
from ourvidz.jobs.job import Job
from ourvidz.ledger.record import Admission
from ourvidz.web.attendance import Attendance
from ourvidz.wiring import control


def take(job: Job, attendance: Attendance) -> Admission:
    """Record and publish an admitted job. `WorkerUnavailable` for a new one that nobody would run,
    `Conflict` when another job stands under its id."""
    ledger = control.current().ledger
    if attendance.missing(job.queue, ledger) and ledger.get(job.id) is None:
        raise attendance.refusal(job.queue)
    return dispatch.enqueue(job)
