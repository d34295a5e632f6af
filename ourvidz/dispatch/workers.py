"""Telling workers what to do: take, stop taking, give back."""

from __future__ import annotations

from celery.utils.nodenames import worker_direct

from ourvidz import log
from ourvidz.app import app
from ourvidz.celery_settings import CALLBACKS_QUEUE, FLUSH_TASK, PRIORITY_SYNC
from ourvidz.dispatch.messages import UNREACHABLE, deliver, publish
from ourvidz.errors import NotFound
from ourvidz.ledger.record import Record
from ourvidz.ledger.sweep import recover
from ourvidz.wiring import control

FLUSH_WITHIN_S = 600.0
"""A worker that is busy for longer than this is not asked any more."""

_log = log.get(__name__)


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
            queue=worker_direct(worker_id), priority=PRIORITY_SYNC, expires=FLUSH_WITHIN_S, retry=False
        )
    except UNREACHABLE as lost:
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
