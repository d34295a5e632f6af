"""The door of the callback worker."""

from __future__ import annotations

from ourvidz import signals  # noqa: F401  every worker connects the handlers
from ourvidz.app import app
from ourvidz.celery_settings import DELIVER_TASK
from ourvidz.wiring import control


@app.task(name=DELIVER_TASK, acks_late=False, ignore_result=True)
def deliver(job_id: str) -> None:
    """Tell a job's caller what is due. Acknowledged early: the outbox, not the message, must not get lost."""
    control.current().courier.deliver(job_id)
