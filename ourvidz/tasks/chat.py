"""The task of the chat worker."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore

from ourvidz import signals  # noqa: F401  a worker's child imports only the task modules
from ourvidz.app import app
from ourvidz.tasks.attempt import services
from ourvidz.tasks.base import GenerationTask, JobFailed
from ourvidz.tasks.text_batching import ClaimedItem, ClaimedJobs
from ourvidz.wiring import control
from ourvidz.workflows.chat import run_text_batch


class ChatTask(GenerationTask):
    """A task that runs its own text job and those that join the batch. Every job ends on its own; Celery
    records how the first one ended."""

    abstract = True

    def run_batch(self, message: dict[str, Any]) -> dict[str, Any]:
        """Claim the job, decode it together with its companions and commit every outcome. Returns the id and
        status of the first job; raises what `run_job` raises."""
        jobs = ClaimedJobs(
            self.claim(message),
            self.family,
            limit=control.current().settings.chat_batch,
            eager=self.request.is_eager,
        )
        try:
            run_text_batch(jobs.first, jobs, services(self.family))
        except Exception as error:  # noqa: BLE001  every error ends the open attempts in the ledger
            jobs.fail_open(error)
        return _task_result(jobs.first)


def _task_result(item: ClaimedItem) -> dict[str, Any]:
    """Return what Celery records of the first job. Raises `JobFailed` when it failed, `Ignore` when it is
    retried or its fence was lost."""
    if item.ending == "completed":
        return {"job_id": item.job.id, "status": "completed"}
    if item.ending == "failed" and item.error is not None:
        raise JobFailed(item.error.code)
    raise Ignore


@app.task(name="ourvidz.chat.generate", base=ChatTask, bind=True, family="chat")
def generate(self: ChatTask, message: dict[str, Any]) -> dict[str, Any]:
    """Generate the answer of one text job, and of those that can be decoded with it."""
    return self.run_batch(message)
