"""Messages by which earlier releases ask for deliveries. Today's io process reads the outbox instead.

While an installation is upgraded, workers of the earlier release still publish such messages, and its io
workers need them.
"""

from __future__ import annotations

from ourvidz.app import app as celery_app
from ourvidz.celery_settings import CALLBACKS_QUEUE, DELIVER_TASK, PRIORITY_SYNC
from ourvidz.dispatch.messages import BROKER_ERRORS, REDACTED
from ourvidz.dispatch.queues import clear, waiting_messages
from ourvidz.errors import WorkerUnavailable
from ourvidz.wiring import control

MESSAGES_AT_ONCE = 100
"""Messages for io workers of an earlier release that are published at once, at most."""


def serve_former_io() -> int:
    """If an io worker of an earlier release runs and has no messages, publish one for each due delivery;
    without one drop the messages: nobody would take them. Returns how many were dropped.

    Raises `WorkerUnavailable` when ledger or broker cannot be reached.
    """
    ledger = control.current().ledger
    try:
        if not any(worker.queue == CALLBACKS_QUEUE for worker in ledger.online_workers(family="io")):
            return clear(CALLBACKS_QUEUE)
        if not waiting_messages(CALLBACKS_QUEUE):
            for job_id in ledger.due_deliveries(MESSAGES_AT_ONCE):
                _publish(job_id)
    except BROKER_ERRORS as error:
        raise WorkerUnavailable("the broker cannot be reached") from error
    return 0


def _publish(job_id: str) -> None:
    celery_app.signature(DELIVER_TASK, args=(job_id,), immutable=True).apply_async(
        queue=CALLBACKS_QUEUE, priority=PRIORITY_SYNC, argsrepr=REDACTED, retry=False
    )
