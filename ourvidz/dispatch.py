"""The door and the way to the broker: admit, publish, cancel, retry, deliver.

Record first, publish second: a message that gets lost is published again by the sweep. Tasks are named,
never imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import chain
from celery.canvas import Signature
from celery.exceptions import OperationalError as CeleryOperationalError
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ourvidz import log
from ourvidz.app import app
from ourvidz.celery_settings import (
    CALLBACKS_QUEUE,
    DELIVER_TASK,
    ENHANCE_TASK,
    ENHANCEMENT,
    FLUSH_TASK,
    JOBS,
    SYNC,
)
from ourvidz.errors import Cancelled, Conflict, NotFound, WorkerUnavailable
from ourvidz.jobs.catalog import CATALOG, QUEUES
from ourvidz.jobs.dialects import parse
from ourvidz.jobs.job import ImageJob, Job, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Admission, Record
from ourvidz.ledger.sweep import recover
from ourvidz.storage.keys import asset_folder
from ourvidz.wiring import control

MESSAGE_VERSION = 1
FLUSH_WITHIN_S = 600.0
HARD_LIMIT_FACTOR = 1.5
"""A job that hears its deadline at no step is stopped from outside this much later."""
NOBODY = "There is no chat worker to enhance the prompt: it was used as it is."
REDACTED = "(…)"
"""What events, logs and Flower show of a message's arguments."""

_UNREACHABLE = (OperationalError, CeleryOperationalError, RedisError, OSError)
_log = log.get(__name__)


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


def task_id(record: Record) -> str:
    """The job id; later runs add theirs."""
    return record.job_id if record.run == 1 else f"{record.job_id}~{record.run}"


def message(record: Record) -> dict[str, Any]:
    """What travels: the id, never the job."""
    return {"v": MESSAGE_VERSION, "id": record.job_id, "run": record.run}


def is_message(argument: object) -> bool:
    """Whether a task's argument is one of our messages, not a payload. A newer version's is one too."""
    return isinstance(argument, dict) and {"v", "id", "run"} == argument.keys()


def time_limit_s(type_name: str) -> float:
    """How long a job of this type may generate, model load excluded."""
    return control.current().settings.time_limits_s.get(type_name, CATALOG[type_name].time_limit_s)


def publish(record: Record, *, in_s: float = 0.0) -> bool:
    """Hand a job's message to the broker, to be taken after `in_s` seconds. False, and a log line, when
    broker or ledger cannot be reached. A job whose prompt is to be enhanced goes to a chat worker first."""
    if app.conf.task_always_eager and CATALOG[record.type].task not in app.tasks:
        _nobody_here(record)
        return False
    work = _generation(record)
    try:
        if record.enhancement == "wanted" and _can_be_enhanced(record):
            work = chain(_enhancement(record), work)
        work.apply_async(countdown=in_s or None)
    except (*_UNREACHABLE, WorkerUnavailable) as lost:
        _log.warning("publish_failed", job_id=record.job_id, error=type(lost).__name__)
        return False
    noted(record)
    return True


def _generation(record: Record) -> Signature:
    limit_s = HARD_LIMIT_FACTOR * time_limit_s(record.type)
    return _signature(CATALOG[record.type].task, record, task_id(record), record.priority, limit_s=limit_s)


def _enhancement(record: Record) -> Signature:
    limit_s = HARD_LIMIT_FACTOR * control.current().settings.enhance_within_s
    return _signature(ENHANCE_TASK, record, f"{task_id(record)}~enhance", ENHANCEMENT, limit_s=limit_s)


def _signature(task: str, record: Record, named: str, priority: int, *, limit_s: float) -> Signature:
    """One message of a job, on the queue of its task; it takes nothing from the one before it."""
    return app.signature(
        task,
        args=(message(record),),
        immutable=True,
        task_id=named,
        queue=app.conf.task_routes[task]["queue"],
        priority=priority,
        argsrepr=REDACTED,
        time_limit=limit_s + control.current().settings.model_load_s,
    )


def _can_be_enhanced(record: Record) -> bool:
    """Whether a chat worker is there for it; without one the enhancement is given up."""
    ledger, queue = control.current().ledger, QUEUES["chat"]
    if app.conf.task_always_eager:
        found = ENHANCE_TASK in app.tasks
    else:
        found = queue not in ledger.paused() and any(
            worker.queue == queue and worker.state != "offline" and not worker.draining
            for worker in ledger.workers()
        )
    if not found:
        ledger.give_up_enhancing(record.job_id, run=record.run, reason=NOBODY)
    return found


def noted(record: Record) -> None:
    """Write down that a message was published. Without the note the sweep publishes one too many."""
    try:
        if not app.conf.task_always_eager:
            control.current().ledger.published(record.job_id, record.run)
    except WorkerUnavailable:
        _log.warning("publish_not_noted", job_id=record.job_id)


def _nobody_here(record: Record) -> None:
    """In eager mode this process is the only worker: what it cannot run, nobody will."""
    error = WorkerUnavailable(f"this version has no worker for {record.type}")
    outcome = Outcome.failure(error)
    if control.current().ledger.end(record.job_id, run=record.run, fence=record.fence, outcome=outcome):
        deliver(record.job_id)


def deliver(job_id: str) -> None:
    """Ask the callback worker to tell a job's caller what is due. A lost request is repeated by the sweep."""
    try:
        app.signature(DELIVER_TASK, args=(job_id,), immutable=True).apply_async(
            queue=CALLBACKS_QUEUE, priority=SYNC, argsrepr=REDACTED, retry=False
        )
    except _UNREACHABLE as lost:
        _log.warning("dispatch_failed", job_id=job_id, error=type(lost).__name__)


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


def hand_back(worker_id: str) -> list[str]:
    """Queue again what a worker holds that shuts down; these attempts do not count. The job ids. An answer
    that its caller has begun to read is ended instead."""
    ledger = control.current().ledger
    back = []
    for record in ledger.held_by(worker_id):
        if not record.repeatable:
            recover(ledger, Broker(), record)
        elif ledger.lose(record.job_id, fence=record.fence, counted=False):
            publish(ledger.get(record.job_id) or record)
            back.append(record.job_id)
    return back


def pause(queue: str) -> None:
    """Stop taking jobs from a queue; running ones finish, new ones are accepted and wait."""
    control.current().ledger.pause(queue, True)
    app.control.cancel_consumer(queue)


def resume(queue: str) -> None:
    """Take jobs from a queue again."""
    control.current().ledger.pause(queue, False)
    wake(queue)


def wake(queue: str) -> None:
    """Ask the workers of a queue, except those that drain, to take from it. Harmless when they do."""
    workers = control.current().ledger.workers()
    awake = [worker.id for worker in workers if worker.queue == queue and not worker.draining]
    if awake:
        app.control.add_consumer(queue, destination=awake)


def drain(worker_id: str, *, draining: bool = True) -> None:
    """Let one worker finish its job and take no more, until it is resumed or restarted. `NotFound`."""
    ledger = control.current().ledger
    worker = next((w for w in ledger.workers() if w.id == worker_id), None)
    if worker is None or not ledger.drain(worker_id, draining):
        raise NotFound(f"no worker {worker_id!r}", field="id", value=worker_id)
    if draining:
        app.control.cancel_consumer(worker.queue, destination=[worker_id])
    elif worker.queue not in ledger.paused():
        app.control.add_consumer(worker.queue, destination=[worker_id])


def flush(worker_id: str) -> bool:
    """Ask a worker to give back the memory it keeps for later, once its job is done. Whether the message was
    sent."""
    try:
        app.signature(FLUSH_TASK, immutable=True).apply_async(
            queue=worker_direct(worker_id), priority=SYNC, expires=FLUSH_WITHIN_S, retry=False
        )
    except _UNREACHABLE as lost:
        _log.warning("flush_not_sent", worker_id=worker_id, error=type(lost).__name__)
        return False
    return True


def waiting_messages(queue: str) -> int:
    """How many messages the broker holds for a queue and no worker has taken."""
    with app.pool.acquire(block=True) as connection:
        return int(connection.default_channel.queue_declare(queue).message_count)


class Broker:
    """The sweep's outlet."""

    def publish(self, record: Record) -> bool:
        """Hand a job's message to the broker."""
        return publish(record)

    def deliver(self, job_id: str) -> None:
        """Hand a delivery to the callback worker."""
        deliver(job_id)

    def wake(self, queue: str) -> None:
        """Ask the workers of a queue to take from it."""
        wake(queue)

    def waiting_messages(self, queue: str) -> int:
        """Messages nobody has taken."""
        return waiting_messages(queue)

    def deliveries_waiting(self) -> int:
        """Deliveries nobody has taken."""
        return waiting_messages(CALLBACKS_QUEUE)
