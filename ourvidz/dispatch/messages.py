"""What travels through the broker: ids, never jobs. Tasks are named, never imported."""

from __future__ import annotations

from typing import Any

from celery import chain
from celery.canvas import Signature
from celery.exceptions import OperationalError as CeleryOperationalError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ourvidz import log
from ourvidz.app import app
from ourvidz.celery_settings import CALLBACKS_QUEUE, DELIVER_TASK, ENHANCE_TASK, ENHANCEMENT, PRIORITY_SYNC
from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs.catalog import CATALOG, QUEUES
from ourvidz.ledger.record import Record
from ourvidz.wiring import control

MESSAGE_VERSION = 1
HARD_LIMIT_FACTOR = 1.5
"""A job that hears its deadline at no step is stopped from outside this much later."""
NOBODY = "There is no chat worker to enhance the prompt: it was used as it is."
REDACTED = "(…)"
"""What events, logs and Flower show of a message's arguments."""
UNREACHABLE = (OperationalError, CeleryOperationalError, RedisError, OSError)
"""What a broker that is away raises."""

_log = log.get(__name__)


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
    work = _generation(record)
    try:
        if record.enhancement == "wanted" and _can_be_enhanced(record):
            work = chain(_enhancement(record), work)
        work.apply_async(countdown=in_s or None)
    except (*UNREACHABLE, WorkerUnavailable) as lost:
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


def deliver(job_id: str) -> None:
    """Ask the callback worker to tell a job's caller what is due. A lost request is repeated by the sweep."""
    try:
        app.signature(DELIVER_TASK, args=(job_id,), immutable=True).apply_async(
            queue=CALLBACKS_QUEUE, priority=PRIORITY_SYNC, argsrepr=REDACTED, retry=False
        )
    except UNREACHABLE as lost:
        _log.warning("dispatch_failed", job_id=job_id, error=type(lost).__name__)
