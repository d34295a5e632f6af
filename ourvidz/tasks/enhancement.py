"""The task that enhances the prompt of a Wan job, on the chat worker."""

from __future__ import annotations

import uuid
from typing import Any, cast

from celery.exceptions import Ignore

from ourvidz import log, signals  # noqa: F401  a worker's child imports only the task modules
from ourvidz.app import app
from ourvidz.celery_settings import ENHANCE_TASK
from ourvidz.errors import Cancelled, WorkerUnavailable
from ourvidz.jobs.job import VideoJob
from ourvidz.records.gpu_usage import usage_amounts
from ourvidz.records.record import Enhancement
from ourvidz.tasks.attempt import services
from ourvidz.wiring import control
from ourvidz.workflows import enhancement
from ourvidz.workflows.enhancement import EnhancementLease
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import gpu_usage_metadata

REQUEST = "ourvidz.tasks.request:RedactedRequest"

_log = log.get(__name__)


@app.task(name=ENHANCE_TASK, acks_late=True, ignore_result=True, Request=REQUEST)
def enhance(message: dict[str, Any]) -> dict[str, Any]:
    """Enhance the prompt of one Wan job and record the result; its generation is next in the chain.

    Raises `Ignore`, which ends the chain, when another worker holds the enhancement lease or the enhancement
    is over: the process that ended it publishes the generation.
    """
    ledger, lease_s = control.current().ledger, control.current().settings.lease_s
    try:
        claimed = ledger.begin_enhancement(
            message["id"], message["run"], lease_s=lease_s, token=uuid.uuid4().hex
        )
        if claimed is None or not ledger.end_enhancement(claimed, result=_enhance(claimed)):
            raise Ignore
    except (FenceLost, Cancelled, WorkerUnavailable) as error:
        _log.warning("enhancement_let_go", job_id=message["id"], reason=type(error).__name__)
        raise Ignore from None
    return {"job_id": claimed.job_id}


def _enhance(claimed: Enhancement) -> dict[str, Any]:
    """Run the enhancement under its lease. Returns the document for the ledger."""
    ledger, settings = control.current().ledger, control.current().settings
    lease = EnhancementLease(claimed, ledger, lease_s=settings.lease_s)
    now = ledger.now()
    waited_s = now - (claimed.record.published_at or now)
    document = enhancement.enhance(
        cast(VideoJob, claimed.job),
        lambda: services("chat"),
        system_prompt=settings.enhance_system_prompt,
        check_lease=lease.check,
        limit_s=settings.enhance_within_s - waited_s,
    )
    _add_usage(claimed, document)
    return document


def _add_usage(claimed: Enhancement, document: dict[str, Any]) -> None:
    """Add the GPU-seconds of a finished enhancement to the usage of today, unless a text server computed it.
    They are not worth a wait for a ledger that is away."""
    settings, record = control.current().settings, claimed.record
    if settings.qwen_base_url is not None:
        return
    seconds = {"encode": float(document.get("seconds", 0.0))}
    usage = gpu_usage_metadata(seconds, price=settings.gpu_price)
    amounts = usage_amounts(record.user_id, record.type, usage, jobs=0)
    if amounts:
        try:
            control.current().ledger.add_gpu_usage(amounts)
        except WorkerUnavailable:
            _log.warning("usage_lost", job_id=record.job_id)
