"""Handlers of Celery's signals: claim before a task, heartbeat and recovery around it.

Celery swallows what a handler raises, and fires no signal for some deaths. So every handler has a second
line: the task body makes a claim that was not decided, and the sweep recovers the job of a child that died.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals

from ourvidz import dispatch, log, startup
from ourvidz.celery_settings import GENERATION_TASKS
from ourvidz.claims import claim_for, task_argument
from ourvidz.draining import Drain
from ourvidz.errors import Conflict, JobTimeout, NotFound
from ourvidz.jobs.catalog import QUEUES
from ourvidz.jobs.outcome import Outcome
from ourvidz.liveness import registration
from ourvidz.liveness.beats import start_beating
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.recovery.sweep import recover
from ourvidz.settings import settings
from ourvidz.stop_signals import stop_signals
from ourvidz.telemetry.status_line import StatusLine
from ourvidz.warmup import WarmUp
from ourvidz.wiring import control, loading

LAST_METRICS_S = 1.0
"""How long a child that ends may take to send the metrics of its last jobs."""
STOPPED_AT_HARD_LIMIT = "the job was still running long after its time limit and was stopped"

_log = log.get(__name__)
_heartbeat: Heartbeat | None = None
_parent_id: str | None = None
"""The worker id of this process, set in a worker's parent."""
_ignores_hangup = False
"""Whether this process was started to outlive its terminal, as by `nohup`."""
_warm_up: WarmUp | None = None
"""The loading of this process's models, in a GPU worker's child."""
_drain: Drain | None = None
"""The drain of this process, a worker's parent, once it was asked to stop."""


@signals.setup_logging.connect
def configure_logging(**_: Any) -> None:
    """Format our log lines and Celery's alike."""
    log.configure(settings().log_level, settings().log_format)


@signals.task_prerun.connect
def open_attempt(task: Any, args: Any, kwargs: Any = None, **_: Any) -> None:
    """Claim the job of a generation task."""
    if task.name not in GENERATION_TASKS:
        return
    claim = claim_for(task.request, task_argument(args, kwargs))
    if claim is not None:
        log.bind(job_id=claim.job_id, attempt=claim.record.attempt)
        if _heartbeat is not None:
            _heartbeat.set_state("busy")


@signals.task_failure.connect
def recover_lost_child(sender: Any, exception: BaseException, **_: Any) -> None:
    """In the parent: recover the jobs of a child that was killed."""
    if sender.name in GENERATION_TASKS and isinstance(exception, WorkerLostError | TimeLimitExceeded):
        _recover_jobs_of_lost_child(sender.name, exception)


@signals.task_revoked.connect
def cancel_revoked(sender: Any, request: Any, **_: Any) -> None:
    """Cancel the job of a message that was revoked with Celery's `revoke`; end it if this worker ran it."""
    if sender.name in GENERATION_TASKS and request.args and dispatch.is_message(request.args[0]):
        message = request.args[0]
        current = control.current().ledger.get(message["id"])
        if current is None or current.run != message["run"]:
            return
        try:
            record = dispatch.cancel(current.job_id)
        except (NotFound, Conflict):
            return
        if record.status == "processing" and record.worker_id == _parent_id:
            recover(control.current().ledger, dispatch.Broker(), record, worker_is_dead=True)


@signals.task_postrun.connect
def close_attempt(task: Any, retval: Any = None, **_: Any) -> None:
    """After a generation task: mark the worker as idle and clear the job from the log context.

    `retval` is what the task has returned, or the exception that ended it. Celery's frame refers to that, and
    its traceback to the frame: a cycle with 200 KB of code positions, which would stay until the next full
    garbage collection. Between two of those a worker ends hundreds of tasks, so the cycle is broken here.
    """
    if isinstance(retval, BaseException):
        retval.__traceback__ = None
    if task.name in GENERATION_TASKS:
        if _heartbeat is not None:
            _heartbeat.set_state("idle")
        log.bind()


def _recover_jobs_of_lost_child(name: str, exception: BaseException) -> None:
    """In the parent: end or requeue every job that its killed child had claimed.

    A job that was alone when the hard time limit passed is the one that hung. Of the texts of a batch any may
    have been: each of them runs again, alone and uncounted.
    """
    ledger = control.current().ledger
    for held in ledger.leased_by(_parent_id or ""):
        timed_out = isinstance(exception, TimeLimitExceeded) and not held.shared and not held.cancel_requested
        if timed_out and ledger.end(held, outcome=Outcome.failure(JobTimeout(STOPPED_AT_HARD_LIMIT))):
            continue
        _log.error("child_lost", task=name, job_id=held.job_id)
        recover(ledger, dispatch.Broker(), held, worker_is_dead=True)


@signals.celeryd_init.connect
def remember_parent_id(sender: str, **_: Any) -> None:
    """In the parent: keep the worker id, by which it recognises its own jobs. A restart ends a drain."""
    global _parent_id, _ignores_hangup
    _parent_id = sender
    _ignores_hangup = signal.SIGHUP not in stop_signals()
    control.current().ledger.set_draining(sender, False)
    startup.mark("connected")


@signals.worker_process_init.connect
def warm_up(**_: Any) -> None:
    """In a GPU worker's child: start the heartbeat, check the certificate, load the models."""
    global _warm_up
    family = settings().worker
    if family not in QUEUES:
        return
    start_beating(settings().beats_dir, "child")
    heartbeat = _start_heartbeat(family, QUEUES[family])
    startup.mark("connected")
    _start_status_line(family)
    _warm_up = WarmUp(heartbeat, family=family, worker_id=settings().worker_id(family))
    _warm_up.attempt()


def load_again() -> None:
    """In a GPU worker's child: try once more to load the models that could not be loaded."""
    if _warm_up is not None:
        _warm_up.attempt()


@signals.worker_process_shutdown.connect
def send_last_metrics(**_: Any) -> None:
    """In a GPU worker's child that ends: send what has not been sent of the metrics of its jobs."""
    reporter = control.current().metrics_reporter if settings().worker in QUEUES else None
    if reporter is not None:
        reporter.close(LAST_METRICS_S)


@signals.worker_ready.connect
def stop_at_hangup(**_: Any) -> None:
    """In the parent: let SIGHUP, which a closed terminal sends to the whole group, stop it as SIGTERM does.
    Celery would start the worker again without a terminal, or die in the middle of its job."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.SIG_IGN if _ignores_hangup else signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGHUP, handler or signal.SIG_DFL)


@signals.worker_ready.connect
def announce_parent(sender: Any, **_: Any) -> None:
    """In the parent: stop consuming paused queues, and all of them when the worker drains or could not load
    its models."""
    ledger = control.current().ledger
    row = next((worker for worker in ledger.workers() if worker.id == sender.hostname), None)
    takes_none = row is not None and (row.draining or row.state == "failed")
    for queue in QUEUES.values() if takes_none else ledger.paused_queues():
        sender.cancel_task_queue(queue)
    startup.mark("ready")
    _log.info("process_ready", part="parent", **startup.phases())


@signals.worker_shutting_down.connect
def drain_on_shutdown(sender: str, how: str, **_: Any) -> None:
    """In the parent, at every request to stop: the first one starts the drain, a second one ends it."""
    global _drain
    if settings().worker not in QUEUES or how != "Warm":
        return
    if _drain is None:
        _drain = Drain(sender, limit_s=settings().drain_s)
        _drain.start()
    else:
        _drain.hand_back()


@signals.worker_shutdown.connect
def stop_heartbeat(sender: Any, **_: Any) -> None:
    """In the parent, after the pool has stopped: mark the worker as offline, and end its registration."""
    if _heartbeat is not None:
        _heartbeat.stop()
    else:
        control.current().ledger.mark_offline(sender.hostname)
    if registration.is_enabled(control.current().settings):
        registration.update_registrations(control.current().ledger)


def _start_heartbeat(name: str, queue: str) -> Heartbeat:
    global _heartbeat
    current = settings()
    _heartbeat = Heartbeat(
        control.current().ledger,
        worker_id=current.worker_id(name),
        family=name,
        queue=queue,
        pid=os.getpid(),
        gpu=current.gpu,
        presence_s=current.presence_s,
        broker_prefix=current.broker_prefix,
    )
    reporter = control.current().metrics_reporter
    if reporter is not None:
        _heartbeat.add_details(lambda: {"metrics": reporter.counts()})
    _heartbeat.start()
    return _heartbeat


def _start_status_line(family: str) -> None:
    """Log the state of this GPU worker periodically, unless the operator has switched that off."""
    app = control.current()
    if app.settings.status_s:
        StatusLine(lambda: _status(family), period_s=app.settings.status_s).start()


def _status(family: str) -> dict[str, Any]:
    """What the status line says: the worker, its ended jobs, and the memory of its GPU in MiB."""
    app = control.current()
    models = loading.loaded(settings(), family)
    memory = {} if models is None else models.memory()
    return {
        "worker_id": app.settings.worker_id(family),
        "state": None if _heartbeat is None else _heartbeat.state,
        **{f"jobs_{name}": count for name, count in app.ended_jobs.counts().items()},
        **{name: memory.get(name) for name in ("vram_used", "vram_total", "vram_utilization")},
    }
