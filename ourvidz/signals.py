"""What happens around every task: claiming, emitting callbacks, presence, recovery.

Celery swallows what a handler raises, and fires nothing for some deaths. So nothing here is the only
one responsible: a claim that was not decided is made by the task body, a delivery that was not
dispatched by the sweep.
"""

from __future__ import annotations

import os
import threading
import uuid
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.app.task import Context

from ourvidz import dispatch, log
from ourvidz.celery_settings import CALLBACKS_QUEUE, GENERATION_TASKS, JOBS, MAINTENANCE_QUEUE
from ourvidz.errors import Conflict, JobTimeout, ModelLoadError, NotFound, WorkerUnavailable
from ourvidz.jobs.catalog import CATALOG, QUEUES
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim, Record
from ourvidz.ledger.sweep import recover
from ourvidz.settings import settings
from ourvidz.wiring import control, loading, signing
from ourvidz.wiring.presence import Presence

TEXT_TASK = CATALOG["chat_conversation"].task
TEXT_TYPES = frozenset(row.name for row in CATALOG.values() if row.task == TEXT_TASK)

_ATTEMPT = "ourvidz_attempt"
_TOKEN = "ourvidz_claim_token"
_CHOICE = "ourvidz_claim_choice"
_log = log.get(__name__)
_presence: Presence | None = None
_node: str | None = None


def attempt_of(request: Context, message: Any) -> Claim | None:
    """The claim of the running task, made on the first call; None when somebody else has the job, it is
    finished or cancelled. A message that is a whole payload (a bare `send_task`) is registered first; that of
    a text stands for the text that is next."""
    if not hasattr(request, _ATTEMPT):
        worker_id = settings().worker_id("eager") if request.is_eager else request.hostname
        if not hasattr(request, _TOKEN):
            # One for prerun and body: a claim whose reply was lost is found again.
            setattr(request, _TOKEN, uuid.uuid4().hex)
        if not hasattr(request, _CHOICE):
            setattr(request, _CHOICE, _choice(request, _known(message)))
        claims = (_claim(each, worker_id, getattr(request, _TOKEN)) for each in getattr(request, _CHOICE))
        setattr(request, _ATTEMPT, next((claim for claim in claims if claim is not None), None))
    claim: Claim | None = getattr(request, _ATTEMPT)
    return claim


def _known(message: Any) -> dict[str, Any]:
    """The message of a job that stands in the ledger."""
    if dispatch.is_message(message):
        return dict(message)
    job = dispatch.admit(message)
    admission = control.current().ledger.register(job, priority=JOBS)
    if not admission.same:
        raise dispatch.taken(job.id)
    return dispatch.message(admission.record)


def _choice(request: Context, message: dict[str, Any]) -> list[dict[str, Any]]:
    """Which jobs a message may start: the first that can be claimed. Requests of the same moment are
    published in any order; texts start in the order of their records."""
    if request.task != TEXT_TASK or request.is_eager:
        return [message]
    ledger = control.current().ledger
    first = [
        dispatch.message(record)
        for record in ledger.waiting(QUEUES["chat"], limit=1)
        if record.type in TEXT_TYPES and record.due_at <= ledger.now()
    ]
    return [*(each for each in first if each != message), message]


def _claim(message: dict[str, Any], worker_id: str, token: str) -> Claim | None:
    at = control.current()
    return at.ledger.claim(
        message["id"],
        message["run"],
        worker_id=worker_id,
        lease_s=at.settings.lease_s,
        token=token,
    )


@signals.setup_logging.connect
def configure_logging(**_: Any) -> None:
    """One log format for ours and Celery's lines."""
    log.configure(settings().log_level, settings().log_format)


@signals.task_prerun.connect
def open_attempt(task: Any, args: Any, **_: Any) -> None:
    """Claim the job; a won claim emits `processing`."""
    if task.name not in GENERATION_TASKS:
        return
    claim = attempt_of(task.request, args[0])
    if claim is not None:
        log.bind(job_id=claim.job_id, attempt=claim.record.attempt)
        if _presence is not None:
            _presence.note("busy")
        dispatch.deliver(claim.job_id)


@signals.task_success.connect
def emit_success(sender: Any, **_: Any) -> None:
    """Emit what a task that ended well has committed."""
    _emit(sender)


@signals.task_failure.connect
def emit_failure(sender: Any, exception: BaseException, args: Any, **_: Any) -> None:
    """Emit what a failed task has committed; decide for a child that could not."""
    if sender.name not in GENERATION_TASKS:
        return
    if isinstance(exception, WorkerLostError | TimeLimitExceeded):
        _decide_for_the_dead(sender.name, exception, args)
    else:
        _emit(sender)


@signals.task_revoked.connect
def cancel_revoked(sender: Any, request: Any, **_: Any) -> None:
    """Somebody revoked the message by Celery's own means: take it as a cancel of the job."""
    if sender.name in GENERATION_TASKS and request.args and dispatch.is_message(request.args[0]):
        message = request.args[0]
        standing = control.current().ledger.get(message["id"])
        if standing is None or standing.run != message["run"]:
            return
        try:
            record = dispatch.cancel(standing.job_id)
        except (NotFound, Conflict):
            return
        if record.status == "processing" and record.worker_id == _node:
            recover(control.current().ledger, dispatch.Broker(), record)


@signals.task_postrun.connect
def close_attempt(task: Any, **_: Any) -> None:
    """The worker is free again."""
    if task.name in GENERATION_TASKS:
        if _presence is not None:
            _presence.note("idle")
        log.bind()


def _emit(task: Any) -> None:
    claim = getattr(task.request, _ATTEMPT, None)
    if claim is not None:
        dispatch.deliver(claim.job_id)


def _decide_for_the_dead(name: str, exception: BaseException, args: Any) -> None:
    ledger = control.current().ledger
    record: Record | None = ledger.get(args[0]["id"]) if dispatch.is_message(args[0]) else None
    if isinstance(exception, TimeLimitExceeded) and record is not None and record.worker_id == _node:
        limit = JobTimeout("the job was still running long after its time limit and was stopped")
        if ledger.end(record.job_id, run=record.run, fence=record.fence, outcome=Outcome.failure(limit)):
            dispatch.deliver(record.job_id)
    # Whatever else the child held: a task may decode the texts of several jobs together.
    for held in ledger.held_by(_node or ""):
        _log.error("child_lost", task=name, job_id=held.job_id)
        recover(ledger, dispatch.Broker(), held)


@signals.celeryd_init.connect
def remember_node(sender: str, **_: Any) -> None:
    """The parent's own name, to know its own jobs by. A restart ends a drain."""
    global _node
    _node = sender
    control.current().ledger.drain(sender, False)


@signals.worker_process_init.connect
def warm_up(**_: Any) -> None:
    """In a GPU worker's child: announce it, try its certificate, and load its models before the first job."""
    family = settings().worker
    if family not in QUEUES:
        return
    _appear(family, QUEUES[family])
    try:
        signing.signer(settings())
        info = _load(family)
    except Exception as error:  # noqa: BLE001  Celery would swallow it, and the worker would seem to start for ever
        _log.exception("model_load_failed", family=family)
        _announce("idle", error=getattr(error, "message", str(error)))
        # Else one broken host would fail everybody's jobs, one after the other.
        dispatch.drain(settings().worker_id(family))
    else:
        _log.info("models_loaded", **info)
        _announce("idle", models=(family,), info=info)


def _load(family: str) -> dict[str, Any]:
    """Load the models of a family, a second time if the first fails."""
    models = loading.models(settings(), family)
    try:
        models.warm()
    except ModelLoadError:
        _log.warning("model_load_retried", family=family)
        models.reload()
    return models.info()


@signals.worker_ready.connect
def appear(sender: Any, **_: Any) -> None:
    """In the parent: do not take what is paused or drained; childless workers announce themselves."""
    ledger = control.current().ledger
    drained = any(worker.draining for worker in ledger.workers() if worker.id == sender.hostname)
    for queue in QUEUES.values() if drained else ledger.paused():
        sender.cancel_task_queue(queue)
    name = settings().worker
    helpers = {"io": CALLBACKS_QUEUE, "keeper": MAINTENANCE_QUEUE}
    if name in helpers:
        _appear(name, helpers[name])
        _announce("idle")


@signals.worker_shutting_down.connect
def take_nothing_more(sender: str, **_: Any) -> None:
    """In the parent, told to stop: the task that runs now, which may take others along, claims no more."""
    if settings().worker in QUEUES:
        # Not here: a signal handler may have interrupted whoever holds the connection's lock.
        threading.Thread(target=_drain, args=(sender,), name="drain", daemon=True).start()


def _drain(worker_id: str) -> None:
    try:
        control.current().ledger.drain(worker_id, True)
    except WorkerUnavailable:
        _log.warning("drain_not_noted", worker_id=worker_id)


@signals.worker_shutdown.connect
def disappear(sender: Any, **_: Any) -> None:
    """In the parent, after the pool has stopped: say goodbye."""
    if _presence is not None:
        _presence.close()
    else:
        control.current().ledger.leave(sender.hostname)


def _appear(name: str, queue: str) -> None:
    global _presence
    chosen = settings()
    _presence = Presence(
        control.current().ledger,
        worker_id=chosen.worker_id(name),
        family=name,
        queue=queue,
        pid=os.getpid(),
        gpu=chosen.gpu,
        presence_s=chosen.presence_s,
    )
    _presence.open()


def _announce(state: Any, **said: Any) -> None:
    if _presence is not None:
        _presence.change(state, **said)
