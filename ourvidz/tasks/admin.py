"""The tasks of administration jobs and of freeing memory."""

from __future__ import annotations

import time
from typing import Any

from ourvidz import __version__, log, signals
from ourvidz.administration import administer
from ourvidz.app import app
from ourvidz.celery_settings import FLUSH_TASK, LOAD_TASK, MOVE_TASK
from ourvidz.jobs.job import AdminJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.settings import settings
from ourvidz.tasks.base import GenerationTask
from ourvidz.wiring import loading
from ourvidz.workflows.services import Run, Services

_log = log.get(__name__)


def run_operation(job: AdminJob, run: Run, services: Services) -> Outcome:  # noqa: ARG001
    """Carry out an administrative operation; its result is the job's one asset."""
    run.step(0, 1)
    began = time.monotonic()
    result = administer(job.operation)
    metadata = {"result": result, "operation": job.operation, "format": "json", "asset_index": 0}
    return Outcome(
        status="completed",
        assets=(Asset(type="json", metadata=metadata),),
        metadata={"generation_time": round(time.monotonic() - began, 3), "worker_version": __version__},
    )


@app.task(name="ourvidz.admin.run", base=GenerationTask, bind=True, family="chat")
def run(self: GenerationTask, message: dict[str, Any]) -> dict[str, Any]:
    """Carry out one administration job. Returns its id and status."""
    return self.run_job(message, run_operation)


@app.task(name=FLUSH_TASK, acks_late=False, ignore_result=True)
def flush() -> None:
    """Free the cached device memory of this process. Sent to one worker's own queue."""
    models = loading.loaded(settings(), settings().worker or "")
    if models is not None:
        models.flush()
        _log.info("caches_flushed")


@app.task(name=LOAD_TASK, acks_late=False, ignore_result=True)
def load() -> None:
    """Try again to load the models of this process. Sent by a worker to its own queue."""
    signals.load_again()


@app.task(name=MOVE_TASK, acks_late=False, ignore_result=True)
def move_model(model: str, action: str, force: bool) -> None:
    """Bring a model onto the GPU of this process, or free its memory. Sent to one worker's own queue. Does
    nothing where the GPU is not shared."""
    models = loading.loaded(settings(), settings().worker or "")
    share = None if models is None else loading.device_share(models)
    if share is not None:
        moved = share.bring(model, force=force) if action == "load" else share.free(model)
        _log.info("model_moved", model=model, action=action, force=force, moved=moved)
