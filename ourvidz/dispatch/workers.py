"""Operations on workers and their queues: pause, drain, flush, and requeue of what a stopped worker held."""

from __future__ import annotations

from typing import Any, Literal

from celery.utils.nodenames import worker_direct

from ourvidz import log
from ourvidz.app import app as celery_app
from ourvidz.celery_settings import FLUSH_TASK, LOAD_TASK, MOVE_TASK, PRIORITY_SYNC
from ourvidz.dispatch.inspection import read_messages
from ourvidz.dispatch.messages import BROKER_ERRORS, publish
from ourvidz.dispatch.queues import waiting_messages
from ourvidz.errors import NotFound
from ourvidz.records.record import Record, Worker
from ourvidz.recovery.check import Messages
from ourvidz.recovery.sweep import recover
from ourvidz.wiring import control

FLUSH_EXPIRES_S = 600.0
"""A flush that a busy worker has not begun by then is dropped."""

_log = log.get(__name__)


def requeue_held_jobs(worker_id: str) -> list[str]:
    """Queue the jobs again that a stopping worker holds; their attempts do not count. Returns the job ids.

    A job whose caller has begun to read the answer fails instead with `WORKER_LOST`.
    """
    ledger = control.current().ledger
    requeued = []
    for record in ledger.leased_by(worker_id):
        if not record.repeatable:
            recover(ledger, Broker(), record, worker_is_dead=True)
        elif ledger.rescue(record, counted=False):
            publish(ledger.get(record.job_id) or record)
            requeued.append(record.job_id)
    return requeued


def pause(queue: str) -> None:
    """Stop all workers from consuming a queue. Running jobs finish; new ones are accepted and wait."""
    control.current().ledger.set_paused(queue, True)
    celery_app.control.cancel_consumer(queue)


def resume(queue: str) -> None:
    """Let the workers of a queue consume it again."""
    control.current().ledger.set_paused(queue, False)
    wake(queue)


def wake(queue: str) -> None:
    """Tell the workers of a queue, except draining ones, to consume it. Those that do already go on."""
    recipients = [worker.id for worker in control.current().ledger.active_workers(queue=queue)]
    if recipients:
        celery_app.control.add_consumer(queue, destination=recipients)


def drain(worker_id: str, *, draining: bool = True) -> None:
    """Let a worker finish its job and take no more, until it is resumed (`draining=False`) or restarted.
    Raises `NotFound`."""
    control.current().ledger.set_draining(_worker(worker_id).id, draining)
    (stop_consuming if draining else start_consuming)(worker_id)


def stop_consuming(worker_id: str) -> None:
    """Tell a worker to consume its queue no longer. Raises `NotFound`."""
    worker = _worker(worker_id)
    celery_app.control.cancel_consumer(worker.queue, destination=[worker_id])


def start_consuming(worker_id: str) -> None:
    """Tell a worker to consume its queue, unless it drains, could not load its models, or the queue is
    paused. Raises `NotFound`."""
    worker = _worker(worker_id)
    takes_none = worker.draining or worker.state == "failed"
    if not takes_none and worker.queue not in control.current().ledger.paused_queues():
        celery_app.control.add_consumer(worker.queue, destination=[worker_id])


def flush(worker_id: str) -> bool:
    """Tell a worker to free its cached memory after the current job. Returns whether the message was sent."""
    return _send(FLUSH_TASK, worker_id, expires=FLUSH_EXPIRES_S)


def request_load(worker_id: str) -> bool:
    """Tell a worker to try again to load its models. Returns whether the message was sent."""
    return _send(LOAD_TASK, worker_id)


def move_model(worker_id: str, model: str, action: Literal["load", "unload"], *, force: bool) -> bool:
    """Tell a worker to bring one of its models onto the GPU, or to free it, after the current job. Returns
    whether the message was sent."""
    return _send(MOVE_TASK, worker_id, args=(model, action, force), expires=FLUSH_EXPIRES_S)


def _send(task: str, worker_id: str, *, args: tuple[Any, ...] = (), **options: Any) -> bool:
    """Send a task to the queue of one worker. Returns whether the broker was reached."""
    try:
        celery_app.signature(task, args=args, immutable=True).apply_async(
            queue=worker_direct(worker_id), priority=PRIORITY_SYNC, retry=False, **options
        )
    except BROKER_ERRORS as error:
        _log.warning("command_not_sent", task=task, worker_id=worker_id, error=type(error).__name__)
        return False
    return True


def _worker(worker_id: str) -> Worker:
    """The row of a worker. Raises `NotFound`."""
    for worker in control.current().ledger.workers():
        if worker.id == worker_id:
            return worker
    raise NotFound(f"no worker {worker_id!r}", field="id", value=worker_id)


class Broker:
    """The broker as `recovery.sweep` and `recovery.check` use it; implements the `Broker` of both."""

    def publish(self, record: Record) -> bool:
        """Publish a job's message. Returns whether the broker was reached."""
        return publish(record)

    def wake(self, queue: str) -> None:
        """Tell the workers of a queue to consume it."""
        wake(queue)

    def waiting_messages(self, queue: str) -> int:
        """Return how many messages no worker has received."""
        return waiting_messages(queue)

    def messages(self, queue: str) -> Messages:
        """Read the messages of a queue, without taking them."""
        return read_messages(queue)
