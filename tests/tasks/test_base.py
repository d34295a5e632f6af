"""Tasks as Celery's pool runs them: what an ended attempt leaves behind in a worker that runs for weeks."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.app.trace import build_tracer

from benchmarks.null_models import NullModels, NullPipeline
from ourvidz import dispatch
from ourvidz.app import app
from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import ImageJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.settings import Settings
from ourvidz.tasks import sdxl
from ourvidz.testing import CallbackRecorder, eager
from ourvidz.wiring import control
from tests.factories import image_job

TASK = "ourvidz.sdxl.generate"
WORKER = "sdxl@host"


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
    """The ledger of this process, in which nothing is published."""
    monkeypatch.setattr(dispatch, "deliver", lambda job_id: None)
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_MODELS=f"{__name__}:build") as running:
        yield running.control.ledger


@pytest.fixture
def run_task() -> Callable[[str], None]:
    """Runs the task of one job's message, inside Celery's frames of a pool child."""
    trace = build_tracer(TASK, sdxl.generate, app=app, hostname=WORKER)

    def run(job_id: str) -> None:
        record = control.current().ledger.get(job_id)
        assert record is not None
        request = {"id": job_id, "task": TASK, "hostname": WORKER, "is_eager": False}
        trace(job_id, (dispatch.message(record),), {}, request)
        for thread in threading.enumerate():
            if thread.name == f"lease-{job_id}":
                thread.join()

    return run


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
    ledger: Ledger, run_task: Callable[[str], None], prompt: str, status: str
) -> None:
    """A full collection takes place when a quarter of all objects are new: a worker ends hundreds of attempts
    before, and would keep the images of every failed one, and 200 KB of Celery's tracebacks for each."""
    for job_id in ("first", "second"):
        ledger.register(image_job(job_id, prompt=prompt), priority=6)
        if prompt == "claimed elsewhere":
            ledger.claim(job_id, 1, worker_id="sdxl@other", lease_s=60, token="other")
    run_task("first")  # imports and caches
    with garbage() as counts:
        run_task("second")
    ended = ledger.get("second")
    assert (ended and ended.status, counts) == (status, Counter())
