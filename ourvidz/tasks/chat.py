"""The door of the chat worker."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore

from ourvidz import signals  # noqa: F401  a worker's child imports only the task modules
from ourvidz.app import app
from ourvidz.tasks.attempt import services
from ourvidz.tasks.base import GenerationTask, JobFailed
from ourvidz.tasks.text_batching import ClaimedCompany, ClaimedTurn
from ourvidz.wiring import control
from ourvidz.workflows.chat import converse


class ChatTask(GenerationTask):
    """A task that decodes its own job and those that join it. Every job ends on its own; Celery sees how the
    first one did."""

    abstract = True

    def run_turns(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run one attempt of a job and of its companions, and commit each ending. Answers the id and status
        of the job."""
        company = ClaimedCompany(
            self.claimed(message),
            self.family,
            limit=control.current().settings.chat_batch,
            eager=self.request.is_eager,
        )
        try:
            converse(company.first, company, services(self.family))
        except Exception as failure:  # noqa: BLE001  the ladder's last rung: every ending is committed
            company.fail(failure)
        return _seen(company.first)


def _seen(turn: ClaimedTurn) -> dict[str, Any]:
    """What Celery sees of a turn: its end, its failure, or nothing when it goes on elsewhere."""
    if turn.ending == "done":
        return {"job_id": turn.job.id, "status": "completed"}
    if turn.ending == "failed" and turn.error is not None:
        raise JobFailed(turn.error.code)
    raise Ignore


@app.task(name="ourvidz.chat.generate", base=ChatTask, bind=True, family="chat")
def generate(self: ChatTask, message: dict[str, Any]) -> dict[str, Any]:
    """Answer one text job, and those that can be answered together with it."""
    return self.run_turns(message)
