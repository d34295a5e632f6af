"""Tasks as Celery's pool runs them: what an ended attempt leaves behind in a worker that runs for weeks."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.app.trace import build_tracer

from benchmarks.null_models import NullModels, NullPipeline
from ourvidz import dispatch
from ourvidz.app import app
from ourvidz.callbacks.delivery import CallbackSender
from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import ImageJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.records.record import Record
from ourvidz.settings import Settings
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring import control
from ourvidz.workflows.run import LeasedRun
from tests.factories import image_job

WORKER = "sdxl@host"
PAYLOADS: dict[str, dict[str, Any]] = {
    "sdxl_image_fast": {"user_id": "u", "config": {"width": 64, "height": 64, "steps": 2}},
    "wan_video_fast": {"user_id": "u", "config": {"width": 64, "height": 64, "frames": 5, "steps": 2}},
    "chat_conversation": {"max_tokens": 8},
}


class PromptedPipeline(NullPipeline):
    """A pipeline without a model that ends as the prompt says."""

    def generate(self, job: ImageJob, **options: Any) -> GeneratedImages:
        if job.prompt == "refuse":
            try:
                raise KeyError(job.prompt)
            except KeyError as error:
                raise InvalidParameters("this prompt is refused", field="prompt") from error
        if job.prompt == "break":
            raise ValueError(job.prompt)
        if job.prompt == "cancel":
            control.current().ledger.request_cancel(job.id)
        return super().generate(job, **options)


class PromptedModels(NullModels):
    def __init__(self) -> None:
        self._pipeline = PromptedPipeline()


def build(settings: Settings, family: str) -> PromptedModels:
    """Build the models; `OURVIDZ_MODELS` names this function."""
    return PromptedModels()


@pytest.fixture
def ledger(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ledger]:
    """The ledger of this process, whose models are those above."""
    monkeypatch.setattr(CallbackSender, "deliver", lambda *_: None)
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_MODELS=f"{__name__}:build") as running:
        yield running.control.ledger


def run_task(record: Record) -> str:
    """Run the task of a job's message inside Celery's frames of a pool child; return the job's status."""
    job_id, task = record.job_id, app.tasks[CATALOG[record.type].task]
    trace = build_tracer(task.name, task, app=app, hostname=WORKER)
    request = {"id": job_id, "task": task.name, "hostname": WORKER, "is_eager": False}
    trace(job_id, (dispatch.message(record),), {}, request)
    for thread in threading.enumerate():
        if thread.name == f"lease-{job_id}":
            thread.join()
    ended = control.current().ledger.get(job_id)
    assert ended is not None
    return str(ended.status)


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """Counts by type the objects of this context that only the garbage collector frees."""
    counts: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield counts
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        counts.update(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        ("a hill", "completed"),
        ("refuse", "failed"),
        ("break", "failed"),
        ("cancel", "cancelled"),
        ("claimed elsewhere", "processing"),
    ],
)
def test_an_ended_attempt_leaves_nothing_to_the_garbage_collector(
    ledger: Ledger, prompt: str, status: str
) -> None:
    """A full collection takes place when a quarter of all objects are new: a worker ends hundreds of attempts
    before, and would keep the images of every failed one, and 200 KB of Celery's tracebacks for each."""
    first, second = (
        ledger.register(image_job(job_id, prompt=prompt), priority=6).record for job_id in ("first", "second")
    )
    if prompt == "claimed elsewhere":
        for record in (first, second):
            ledger.claim(record.job_id, 1, worker_id="sdxl@other", lease_s=60, token="other")
    run_task(first)  # fills caches
    with garbage() as counts:
        ended = run_task(second)
    assert (ended, counts) == (status, Counter())


@pytest.mark.model
@pytest.mark.parametrize("job_type", PAYLOADS)
def test_a_pass_that_fails_leaves_no_tensors_to_the_garbage_collector(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch, job_type: str
) -> None:
    """The next job needs the memory of the device."""

    def refuse(*_: Any, **__: Any) -> None:
        raise InvalidParameters("refused while it runs")

    def register(job_id: str) -> Record:
        payload = {"id": job_id, "type": job_type, "prompt": "a fox"} | PAYLOADS[job_type]
        job = dispatch.parse_payload(payload)
        return ourvidz_eager.control.ledger.register(job, priority=6).record

    monkeypatch.setattr(CallbackSender, "deliver", lambda *_: None)
    assert run_task(register("loads-models")) == "completed"
    monkeypatch.setattr(LeasedRun, "step", refuse)
    monkeypatch.setattr(LeasedRun, "after_text", refuse)
    run_task(register("first"))
    second = register("second")
    with garbage() as counts:
        ended = run_task(second)
    assert (ended, counts) == ("failed", Counter())
