"""Celery messages: they carry the id of a job, never the job. Tasks are named, never imported."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from celery import chain
from celery.canvas import Signature
from celery.exceptions import OperationalError as CeleryOperationalError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ourvidz import log
from ourvidz.app import app as celery_app
from ourvidz.celery_settings import ENHANCE_TASK, ENHANCEMENT
from ourvidz.dispatch.broker_entries import EntryTemplate, is_broker, template
from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs.catalog import CATALOG, QUEUES
from ourvidz.jobs.job import Job
from ourvidz.records.record import BrokerEntry, Record, awaits_enhancement
from ourvidz.wiring import control

MESSAGE_VERSION = 1
HARD_LIMIT_FACTOR = 1.5
"""Hard time limit, as a multiple of the soft limit: stops a job that never reaches a step boundary."""
NO_CHAT_WORKER = "There is no chat worker to enhance the prompt: it was used as it is."
CHAT_QUEUE_PAUSED = "The chat queue is paused: the prompt was used as it is."
PAYLOAD_FIELDS = frozenset({"type", "job_type", "prompt"})
"""Fields that no message has, of any version."""
REDACTED = "(…)"
"""Shown in place of a message's arguments in events, logs and Flower."""
BROKER_ERRORS = (OperationalError, CeleryOperationalError, RedisError, OSError)
"""Raised when the broker cannot be reached."""

_log = log.get(__name__)


def task_id(record: Record) -> str:
    """Return the Celery task id of a job's run: the job id, with `~RUN` appended from the second run on."""
    return _task_id(record.job_id, record.run)


def message(record: Record) -> dict[str, Any]:
    """Return the argument of a job's task: `{"v": version, "id": job id, "run": run}`."""
    return _message(record.job_id, record.run)


def is_message(argument: object) -> bool:
    """Return whether a task's argument is a message of any version, as opposed to a payload."""
    if not isinstance(argument, dict) or argument.keys() & PAYLOAD_FIELDS:
        return False
    return {"v", "id", "run"} <= argument.keys()


def time_limit_s(type_name: str) -> float:
    """Return the soft time limit of a job type: seconds of generation, model load excluded."""
    return control.current().settings.time_limits_s.get(type_name, CATALOG[type_name].time_limit_s)


def publish(record: Record, *, delay_s: float = 0.0) -> bool:
    """Publish the message of a job, to be consumed after `delay_s` seconds.

    A job whose prompt is to be enhanced is published as a chain: enhancement, then generation. Returns False,
    after logging, when the broker or the ledger cannot be reached.
    """
    signature = _generation(record.job_id, record.run, record.type, record.priority)
    try:
        if record.enhancement == "wanted" and _start_with_enhancement(record):
            signature = chain(_enhancement(record), signature)
        signature.apply_async(countdown=delay_s or None)
    except (*BROKER_ERRORS, WorkerUnavailable) as error:
        _log.warning("publish_failed", job_id=record.job_id, error=type(error).__name__)
        return False
    note_published(record)
    return True


def broker_entry(job: Job, *, priority: int) -> BrokerEntry | None:
    """Return the message of a job's first run as the broker's list contains it, for the ledger to publish it
    with the record. None when it is published on its own: the broker is elsewhere, or what comes first
    depends on the workers."""
    if awaits_enhancement(job) or not is_broker(control.current().ledger.url):
        return None
    prefix = celery_app.conf.broker_transport_options.get("global_keyprefix", "")
    return _template(job.type, priority, _hard_limit_s(time_limit_s(job.type)), prefix).entry(job.id)


def note_published(record: Record) -> None:
    """Note in the ledger that a message was published, so that the sweep does not publish another. A ledger
    that cannot be reached is logged."""
    try:
        if not celery_app.conf.task_always_eager:
            control.current().ledger.mark_published(record.job_id, record.run)
    except WorkerUnavailable:
        _log.warning("publish_not_noted", job_id=record.job_id)


def _task_id(job_id: str, run: int) -> str:
    return job_id if run == 1 else f"{job_id}~{run}"


def _message(job_id: str, run: int) -> dict[str, Any]:
    return {"v": MESSAGE_VERSION, "id": job_id, "run": run}


@lru_cache(maxsize=64)
def _template(type_name: str, priority: int, limit_s: float, broker_prefix: str) -> EntryTemplate:  # noqa: ARG001
    """The messages of the first runs of jobs of one type. Its arguments are all that they depend on."""
    return template(lambda job_id: _generation(job_id, 1, type_name, priority))


def _generation(job_id: str, run: int, type_name: str, priority: int) -> Signature:
    task, celery_id = CATALOG[type_name].task, _task_id(job_id, run)
    limit_s = _hard_limit_s(time_limit_s(type_name))
    return _signature(task, _message(job_id, run), celery_id, priority, limit_s=limit_s)


def _enhancement(record: Record) -> Signature:
    limit_s = _hard_limit_s(control.current().settings.enhance_within_s)
    celery_id = f"{task_id(record)}~enhance"
    return _signature(ENHANCE_TASK, message(record), celery_id, ENHANCEMENT, limit_s=limit_s)


def _signature(
    task: str, argument: dict[str, Any], celery_id: str, priority: int, *, limit_s: float
) -> Signature:
    """Return one message of a job, for the queue of its task. Immutable: in a chain, it ignores the result of
    its predecessor. `limit_s`: hard time limit in seconds."""
    return celery_app.signature(
        task,
        args=(argument,),
        immutable=True,
        task_id=celery_id,
        queue=celery_app.conf.task_routes[task]["queue"],
        priority=priority,
        argsrepr=REDACTED,
        time_limit=limit_s,
        # As the tasks have it: messages are alike whether or not their tasks are registered in this process.
        ignore_result=True,
    )


def _hard_limit_s(soft_limit_s: float) -> float:
    """The hard time limit in seconds of a task with this soft one, with the time to load its model."""
    return HARD_LIMIT_FACTOR * soft_limit_s + control.current().settings.model_load_s


def _start_with_enhancement(record: Record) -> bool:
    """Return whether a chat worker can enhance the prompt; if not, give the enhancement up in the ledger."""
    obstacle = _enhancement_obstacle()
    if obstacle is not None:
        control.current().ledger.skip_enhancement(record.job_id, run=record.run, reason=obstacle)
    return obstacle is None


def _enhancement_obstacle() -> str | None:
    """Return why no chat worker would take an enhancement now, as a sentence for the caller; None if one
    would."""
    if celery_app.conf.task_always_eager:
        return None if ENHANCE_TASK in celery_app.tasks else NO_CHAT_WORKER
    ledger, queue = control.current().ledger, QUEUES["chat"]
    if ledger.active_workers(queue=queue):
        return None
    return CHAT_QUEUE_PAUSED if queue in ledger.paused_queues() else NO_CHAT_WORKER
