"""The task of the callback worker."""

from __future__ import annotations

from ourvidz import signals  # noqa: F401  every worker connects the handlers
from ourvidz.app import app
from ourvidz.celery_settings import DELIVER_TASK
from ourvidz.wiring import control


@app.task(name=DELIVER_TASK, acks_late=False, ignore_result=True)
def deliver(job_id: str) -> None:
    """Send the due callbacks of a job. Acknowledged early: the outbox, not the message, is durable."""
    control.current().callback_sender.deliver(job_id)
