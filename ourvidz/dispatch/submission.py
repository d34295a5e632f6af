"""The one way in for jobs: parse → safety gate → capacity and workers → record → publish.

Every entrance calls `submit` or `submit_all`: HTTP, the Upstash forms, synchronous chat, the OpenAI routes,
`task.delay(payload)`, a payload sent to a task by name, and `ourvidz.testing`. The record is written with
the message or before it: a message that gets lost is published again by the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ourvidz.app import app as celery_app
from ourvidz.celery_settings import JOBS
from ourvidz.dispatch.messages import broker_entry, publish
from ourvidz.dispatch.reuse import find_reusable, reuse_result
from ourvidz.errors import Conflict, OurvidzError
from ourvidz.jobs.dialects import parse
from ourvidz.jobs.job import Job
from ourvidz.records.allowances import JobLimits
from ourvidz.records.record import Admission
from ourvidz.wiring import control

MakeId = Callable[[], str]
LimitsOf = Callable[[Job], JobLimits]
"""What a job of the caller is held to."""


def parse_payload(payload: object, *, make_id: MakeId | None = None) -> Job:
    """Return the job that a payload describes, with this installation's defaults. Writes nothing.

    `make_id` supplies the id of a payload without one. Raises `InvalidParameters` or `InvalidPrompt`.
    """
    return parse(payload, control.current().defaults, make_id=make_id)


def submit(
    payload: object | Job,
    *,
    priority: int = JOBS,
    make_id: MakeId | None = None,
    suppress_callbacks: bool = False,
    in_worker: bool = False,
    require_worker: bool = True,
    limits: LimitsOf | None = None,
) -> Admission:
    """Submit one job: a payload, or the result of `parse_payload`.

    Resubmitting the same job under its id returns the existing record and publishes nothing.
    `suppress_callbacks`: no callback is ever sent for the job. `in_worker`: the payload arrived as a message,
    so a worker already has it; availability is not checked and no second message is published.
    `require_worker` false: the caller cannot be told to try again, so a job whose queue has no worker waits.
    `limits`: what a new job is held to; a repeated one is charged nothing.

    Raises `CallerError` for a payload that is invalid or refused by the gate, `Conflict` when another job has
    the same id. For a new job: `CapacityExceeded` when there is no capacity, `WorkerUnavailable` when no
    worker of its queue was seen within the grace period, `RateLimited` when `limits` refuse it.
    `WorkerUnavailable` when the ledger cannot be reached.
    """
    (admission,) = submit_all(
        [payload],
        priority=priority,
        make_id=make_id,
        suppress_callbacks=suppress_callbacks,
        in_worker=in_worker,
        require_worker=require_worker,
        limits=limits,
    )
    return admission


def submit_all(
    payloads: Sequence[object | Job],
    *,
    priority: int = JOBS,
    make_id: MakeId | None = None,
    suppress_callbacks: bool = False,
    in_worker: bool = False,
    require_worker: bool = True,
    limits: LimitsOf | None = None,
) -> list[Admission]:
    """Submit several jobs; all are checked before the first is recorded. Arguments and errors as in `submit`.
    A limit that refuses one of them leaves those before it recorded: the same call goes on from there.

    The `field` of an error in one of several payloads begins with its index: `[1].config.steps`.
    """
    jobs = _parse_all(payloads, make_id)
    _judge(jobs)
    if len(jobs) > 1:
        _check_together(jobs)
    if not in_worker:
        for job in jobs:
            _check_acceptance(job, require_worker=require_worker)
    admissions = []
    for index, job in enumerate(jobs):
        with _numbered(index, len(jobs)):
            admissions.append(_enqueue(job, priority, suppress_callbacks, in_worker, limits))
    return admissions


def _parse_all(payloads: Sequence[object | Job], make_id: MakeId | None) -> list[Job]:
    """Parse all payloads before the first is judged: a push with one malformed payload costs no more."""
    jobs: list[Job] = []
    for index, payload in enumerate(payloads):
        with _numbered(index, len(payloads)):
            jobs.append(payload if isinstance(payload, Job) else parse_payload(payload, make_id=make_id))
    return jobs


def _judge(jobs: Sequence[Job]) -> None:
    """Pass the jobs through the safety gate."""
    for index, job in enumerate(jobs):
        with _numbered(index, len(jobs)):
            control.current().gate.check_job(job)


@contextmanager
def _numbered(index: int, total: int) -> Iterator[None]:
    """Add the position of one of several payloads to the errors that it raises."""
    try:
        yield
    except OurvidzError as error:
        if total > 1:
            _at(error, index)
        raise


def _check_together(jobs: Sequence[Job]) -> None:
    """Raise what `_enqueue` would raise for any of the jobs, also for two different ones under one id."""
    ledger = control.current().ledger
    by_id: dict[str, tuple[str, dict[str, Any], str | None]] = {}
    for index, job in enumerate(jobs):
        record = ledger.get(job.id)
        if record is not None:
            by_id[job.id] = record.fingerprint, record.callback_metadata, record.request
        elif _has_no_worker(job):
            raise _at(control.current().availability.refusal(job.queue), index)
        own = job.fingerprint(), job.callback_metadata(), job.request()
        if not job.is_repeat_of(*by_id.setdefault(job.id, own)):
            raise _at(_id_conflict(job.id), index)


def _at(error: OurvidzError, index: int) -> OurvidzError:
    """Prefix the `field` of an error with the position of its payload; return the error."""
    error.field = f"[{index}].{error.field}" if error.field else f"[{index}]"
    return error


def _enqueue(
    job: Job, priority: int, suppress_callbacks: bool, in_worker: bool, limits: LimitsOf | None
) -> Admission:
    """Record a checked job and publish its message, both in one transaction where that is possible."""
    ledger = control.current().ledger
    earlier = find_reusable(job)
    entry = None if in_worker or earlier is not None else broker_entry(job, priority=priority)
    admission = ledger.register(
        job,
        priority=priority,
        suppress_callbacks=suppress_callbacks,
        entry=entry,
        limits=limits and limits(job),
    )
    if not admission.same:
        raise _id_conflict(job.id)
    if earlier is not None and admission.created and reuse_result(admission.record, earlier):
        record = ledger.get(job.id) or admission.record
        return replace(admission, record=record, position=0)
    if admission.created and not in_worker and entry is None:
        publish(admission.record)
    return admission


def _check_acceptance(job: Job, *, require_worker: bool) -> None:
    """Raise `WorkerUnavailable` or `CapacityExceeded` for a new job that cannot be accepted now."""
    app = control.current()
    refusal: OurvidzError | None = app.capacity.refusal()
    if require_worker and _has_no_worker(job):
        refusal = app.availability.refusal(job.queue)
    if refusal is not None and app.ledger.get(job.id) is None:
        raise refusal


def _has_no_worker(job: Job) -> bool:
    """Return whether no worker serves the job's queue. In eager mode this process is the worker."""
    return not celery_app.conf.task_always_eager and control.current().availability.is_missing(job.queue)


def _id_conflict(job_id: str) -> Conflict:
    message = f"id: another job already stands under {job_id!r}"
    return Conflict(message, field="id", rule="one id, one job", value=job_id)
