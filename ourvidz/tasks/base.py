"""What the task of every kind of generation is: a door, and how Celery gets to see an ending."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Ignore
from celery.result import AsyncResult

from ourvidz import dispatch, log
from ourvidz.claims import claim_for
from ourvidz.errors import OurvidzError, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim
from ourvidz.tasks.attempt import Attempt, known, services
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services

Workflow = Callable[[Any, Any, Services], Outcome]

RETRY_DELAY_S = 1.0
PUBLISH_SLACK_S = 0.25
"""A retry's message comes this much after its due time, so that it is never early."""

_log = log.get(__name__)


class JobFailed(Exception):
    """What Celery gets to see of a failure: the code. Tracebacks and messages stay in our own log."""


class GenerationTask(Task):  # type: ignore[misc]
    """A task that runs one attempt of one job.

    Called with a payload (`generate.delay(payload)`) it is the door: the job is validated, recorded and
    published, exactly as over HTTP. Called with a message it publishes that message.
    """

    abstract = True
    acks_late = True
    ignore_result = True
    max_retries = None
    throws = (JobFailed,)
    Request = "ourvidz.tasks.request:RedactedRequest"
    family: str

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult:
        """Publish a message, or submit a payload. Raises `CallerError` for a payload that is refused."""
        if args and not dispatch.is_message(args[0]):
            record = dispatch.submit(args[0]).record
            return AsyncResult(dispatch.task_id(record), app=self.app)
        return super().apply_async(args, kwargs, **options)

    def run_job(self, message: dict[str, Any], workflow: Workflow) -> dict[str, Any]:
        """Run one attempt and commit its ending. Answers the job id and status, nothing more."""
        attempt = Attempt(self.claimed(message), self.family)
        job_id = attempt.claim.job_id
        try:
            try:
                with attempt.running() as run:
                    # Inside, so that the lease is kept while models are built.
                    outcome = workflow(attempt.claim.job, run, services(self.family))
            except FenceLost:
                raise
            except Exception as failure:  # noqa: BLE001  the ladder's last rung: every ending is committed
                error = known(failure, job_id)
            else:
                attempt.finish(outcome)
                return {"job_id": job_id, "status": outcome.status}
            self._retry_or_fail(attempt, error)
        except FenceLost:
            _log.warning("fence_lost", job_id=job_id)
            raise Ignore from None

    def claimed(self, message: dict[str, Any]) -> Claim:
        """The claim of this task. `Ignore` when somebody else has the job, or it cannot be decided now."""
        try:
            claim = claim_for(self.request, message)
        except WorkerUnavailable:
            _log.warning("claim_not_decided")
            raise Ignore from None
        if claim is None:
            raise Ignore
        return claim

    def _retry_or_fail(self, attempt: Attempt, error: OurvidzError) -> NoReturn:
        due_in_s = 0.0 if self.request.is_eager else RETRY_DELAY_S
        if attempt.settle(error, retry_delay_s=due_in_s) == "failed":
            raise JobFailed(error.code) from None
        again = self.retry(
            args=(dispatch.message(attempt.claim.record),),
            countdown=due_in_s + PUBLISH_SLACK_S,
            exc=JobFailed(error.code),
            throw=False,
        )
        dispatch.note_published(attempt.claim.record)
        raise again
