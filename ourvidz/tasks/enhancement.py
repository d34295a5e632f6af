"""The door of the enhancement of Wan prompts, on the chat worker."""

from __future__ import annotations

import uuid
from typing import Any, cast

from celery.exceptions import Ignore

from ourvidz import log, signals  # noqa: F401  a worker's child imports only the task modules
from ourvidz.app import app
from ourvidz.celery_settings import ENHANCE_TASK
from ourvidz.errors import Cancelled, WorkerUnavailable
from ourvidz.jobs.job import VideoJob
from ourvidz.ledger.record import Enhancement
from ourvidz.tasks.attempt import services
from ourvidz.wiring import control
from ourvidz.workflows import enhancement
from ourvidz.workflows.enhancing import LeasedEnhancement
from ourvidz.workflows.run import FenceLost

REQUEST = "ourvidz.tasks.request:RedactedRequest"

_log = log.get(__name__)


@app.task(name=ENHANCE_TASK, acks_late=True, ignore_result=True, Request=REQUEST)
def enhance(message: dict[str, Any]) -> dict[str, Any]:
    """Find the words of one Wan job. Its generation comes next in the chain.

    `Ignore`, which ends the chain, when the words are not this message's to find: then the generation's
    message comes from whoever found them, gave them up, or cancelled.
    """
    at = control.current()
    try:
        held = at.ledger.begin_enhancement(
            message["id"], message["run"], lease_s=at.settings.lease_s, token=uuid.uuid4().hex
        )
        if held is None or not at.ledger.end_enhancement(held, result=_words(held)):
            raise Ignore
    except (FenceLost, Cancelled, WorkerUnavailable) as lost:
        _log.warning("enhancement_let_go", job_id=message["id"], reason=type(lost).__name__)
        raise Ignore from None
    return {"job_id": held.job_id}


def _words(held: Enhancement) -> dict[str, Any]:
    at = control.current()
    lease = LeasedEnhancement(held, at.ledger, lease_s=at.settings.lease_s)
    now = at.ledger.now()
    waited_s = now - (held.record.published_at or now)
    return enhancement.enhance(
        cast(VideoJob, held.job),
        lambda: services("chat"),
        system_prompt=at.settings.enhance_system_prompt,
        hear=lease.hear,
        limit_s=at.settings.enhance_within_s - waited_s,
    )
