"""The one ladder that decides how a job ends: done, again, or failed with a code."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Ignore
from celery.result import AsyncResult

from ourvidz import __version__, dispatch, log
from ourvidz.errors import InternalError, OperatorError, OurvidzError, SettingsError, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim
from ourvidz.signals import attempt_of
from ourvidz.wiring import control, loading
from ourvidz.workflows.run import FenceLost, LeasedRun
from ourvidz.workflows.services import Services

Workflow = Callable[[Any, Any, Services], Outcome]

COMMIT_PATIENCE_S = 60.0
"""How long a finished attempt waits for a ledger that is away."""
COMMIT_PAUSE_S = 0.5
RETRY_DELAY_S = 1.0
PUBLISH_SLACK_S = 0.25
"""A retry's message comes this much after its due time, so that it is never early."""

_log = log.get(__name__)


class JobFailed(Exception):
    """What Celery gets to see of a failure: the code. Tracebacks and messages stay in our own log."""


def told(error: OurvidzError) -> OurvidzError:
    """What a caller may hear: an operator's errors name paths of this machine, which are for our log."""
    if isinstance(error, SettingsError):
        return InternalError("the worker is not set up; its operators have the details")
    if isinstance(error, OperatorError):
        return type(error)("the worker is not set up for this job; its operators have the details")
    return error


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
        try:
            claim = attempt_of(self.request, message)
        except WorkerUnavailable:
            _log.warning("claim_not_decided")
            raise Ignore from None
        if claim is None:
            raise Ignore
        error: OurvidzError
        try:
            outcome = self._attempt(claim, workflow)
        except FenceLost:
            _log.warning("fence_lost", job_id=claim.job_id)
            raise Ignore from None
        except OurvidzError as known:
            error = known
        except Exception:  # noqa: BLE001  the ladder's last rung: every ending is committed
            _log.exception("internal_error", job_id=claim.job_id)
            error = InternalError("the worker failed; the operators have the details")
        else:
            self._commit(claim, outcome)
            return {"job_id": claim.job_id, "status": outcome.status}
        self._retry_or_fail(claim, error)

    def _attempt(self, claim: Claim, workflow: Workflow) -> Outcome:
        at = control.current()
        run = LeasedRun(
            claim,
            at.ledger,
            lease_s=at.settings.lease_s,
            limit_s=dispatch.time_limit_s(claim.job.type),
            on_told=partial(dispatch.deliver, claim.job_id) if at.settings.progress_callbacks else None,
            previews=at.settings.previews,
        )
        with run:
            # Inside, so that the lease is kept while models are built.
            use = Services(
                models=loading.models(at.settings, self.family),
                store=at.store,
                gate=at.gate,
                references=at.references,
                signer=at.signer,
            )
            return workflow(claim.job, run, use)

    def _retry_or_fail(self, claim: Claim, error: OurvidzError) -> NoReturn:
        tried = claim.record.failures.get(error.code, 0) + 1
        _log.warning(
            "attempt_failed", job_id=claim.job_id, code=error.code, tried=tried, reason=error.message
        )
        if error.scope == "job" and tried < error.attempts:
            self._again(claim, error)
        self._commit(claim, Outcome.failure(told(error), **self._known()))
        raise JobFailed(error.code) from None

    def _again(self, claim: Claim, error: OurvidzError) -> NoReturn:
        due_in_s = 0.0 if self.request.is_eager else RETRY_DELAY_S
        if not control.current().ledger.release(claim, code=error.code, due_in_s=due_in_s):
            raise Ignore
        again = self.retry(
            args=(dispatch.message(claim.record),),
            countdown=due_in_s + PUBLISH_SLACK_S,
            exc=JobFailed(error.code),
            throw=False,
        )
        dispatch.noted(claim.record)
        raise again

    def _commit(self, claim: Claim, outcome: Outcome) -> None:
        patience_ends = time.monotonic() + COMMIT_PATIENCE_S
        ledger = control.current().ledger
        while True:
            try:
                kept = ledger.end(
                    claim.job_id,
                    run=claim.run,
                    fence=claim.fence,
                    outcome=outcome,
                    worker_id=claim.record.worker_id,
                )
            except WorkerUnavailable:
                if time.monotonic() > patience_ends:
                    _log.error("commit_given_up", job_id=claim.job_id)
                    raise Ignore from None
                time.sleep(COMMIT_PAUSE_S)
                continue
            if not kept:
                _log.warning("fence_lost", job_id=claim.job_id)
                raise Ignore
            return

    def _known(self) -> dict[str, Any]:
        """What a failed job's callback tells besides the error."""
        known: dict[str, Any] = {"worker_version": __version__}
        models = loading.loaded(self.family)
        try:
            return known | (models.memory() if models else {})
        except Exception:  # noqa: BLE001  a broken GPU must not keep its job from ending
            _log.exception("memory_unknown")
            return known
