"""The base class of all generation tasks: submission of payloads, and the run of one attempt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Ignore
from celery.result import AsyncResult

from ourvidz import dispatch, log
from ourvidz.claims import claim_for, task_argument
from ourvidz.errors import InvalidParameters, OurvidzError, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.pipelines.base import Preempted
from ourvidz.records.record import Claim
from ourvidz.tasks.attempt import Attempt, services, to_job_error
from ourvidz.tasks.preemption import CachedReferences, Preemption
from ourvidz.wiring import control
from ourvidz.workflows.run import FenceLost, LeasedRun
from ourvidz.workflows.services import Services, give_back_gpu_seconds, take_gpu_seconds

Workflow = Callable[[Any, Any, Services], Outcome]
"""A workflow takes the job, the run and the services."""

UNSUPPORTED_OPTIONS = ("chain", "chord", "link", "link_error", "countdown", "eta", "expires")
"""Celery's options for what follows a task, and when it runs; a submitted job has none of them."""
RETRY_DELAY_S = 1.0
PUBLISH_SLACK_S = 0.25
"""A retry's message is due this much after the job, so that it never arrives early."""

_log = log.get(__name__)


class JobFailed(Exception):
    """What Celery records of a failed job: the error code. Messages and tracebacks stay in our own log."""


class GenerationTask(Task):  # type: ignore[misc]
    """A task that runs one attempt of one job.

    `delay` and `apply_async` with a payload submit the job: it is checked, recorded and published exactly as
    over HTTP. With a message they publish that message.
    """

    abstract = True
    acks_late = True
    ignore_result = True
    max_retries = None
    throws = (JobFailed,)
    Request = "ourvidz.tasks.request:RedactedRequest"
    family: str

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult:
        """Submit a payload, or publish a message.

        Raises what `dispatch.submit` raises, `InvalidParameters` for an option that a submitted job cannot
        have, and `TypeError` for other arguments than the task's one.
        """
        self.__header__(*(args or ()), **(kwargs or {}))
        argument = task_argument(args, kwargs)
        if dispatch.is_message(argument):
            return super().apply_async(args, kwargs, **options)
        _refuse_options(options)
        record = dispatch.submit(argument).record
        return AsyncResult(dispatch.task_id(record), app=self.app)

    def run_job(self, message: dict[str, Any], workflow: Workflow) -> dict[str, Any]:
        """Claim the job, run the workflow and commit the outcome. Returns the job's id and status.

        Raises `JobFailed` for a committed failure, Celery's `Retry` for another attempt, and Celery's
        `Ignore` when there is no claim or the fence is lost.
        """
        claim = self.claim(message)
        preemption = self._preemption(claim)
        attempt = Attempt(claim, self.family, is_preempted=preemption.is_due)
        try:
            # To the end, so that the lease is renewed while models are built and while the commit is tried.
            with attempt.running() as run:
                preemption.watch(run)
                error = _perform(attempt, lambda: self._run_with_pauses(claim, run, workflow, preemption))
                if error is None:
                    return {"job_id": claim.job_id, "status": "completed"}
                self._retry_or_fail(attempt, error)
        except FenceLost:
            _log.warning("fence_lost", job_id=claim.job_id)
            raise Ignore from None

    def _preemption(self, claim: Claim) -> Preemption:
        app = control.current()
        return Preemption(
            claim,
            app.ledger,
            lambda: services(self.family).device,
            every_s=math.inf if self.request.is_eager else app.settings.preempt_every_s or math.inf,
            turn_s=app.settings.gpu_turn_s,
        )

    def _run_with_pauses(
        self, claim: Claim, run: LeasedRun, workflow: Workflow, preemption: Preemption
    ) -> Outcome:
        """Run the workflow, again from its checkpoint whenever the job has yielded."""
        shared = services(self.family)
        job_services = replace(shared, references=CachedReferences(shared.references))
        while True:
            try:
                return preemption.report(workflow(claim.job, run, job_services))
            except Preempted:
                # What follows is outside this block: the traceback would keep the tensors of the pass.
                pass
            taken = take_gpu_seconds(shared.models)
            try:
                run.note_preempted()
                other = preemption.claim_next()
                if other is not None:
                    self._run_beside(other, workflow)
            finally:
                give_back_gpu_seconds(shared.models, taken)

    def _run_beside(self, claim: Claim, workflow: Workflow) -> None:
        """Run a job that another one of this task has yielded to. Its failure is its own: it
        is not raised."""
        attempt = Attempt(claim, self.family)
        try:
            with attempt.running() as run:
                error = _perform(attempt, lambda: workflow(claim.job, run, services(self.family)))
                ending = attempt.end_with_error(error, retry_delay_s=RETRY_DELAY_S) if error else "completed"
            if ending == "retry":
                dispatch.publish(claim.record, delay_s=RETRY_DELAY_S + PUBLISH_SLACK_S)
        except FenceLost:
            _log.warning("fence_lost", job_id=claim.job_id)
        except Exception:  # noqa: BLE001  its lease ends, and it is queued again
            _log.exception("companion_not_ended", job_id=claim.job_id)

    def claim(self, argument: Any) -> Claim:
        """Return the claim of this task's request; `argument` is a message or a payload. Raises `Ignore` when
        another worker has the job, or the ledger cannot be reached; `TypeError` for a task that is called
        like a function, in a process that may be no worker."""
        if self.request.called_directly:
            raise TypeError(f"{self.name} runs in a worker: submit the payload with delay()")
        try:
            claim = claim_for(self.request, argument)
        except WorkerUnavailable:
            _log.warning("claim_not_decided")
            raise Ignore from None
        if claim is None:
            raise Ignore
        return claim

    def _retry_or_fail(self, attempt: Attempt, error: OurvidzError) -> NoReturn:
        delay_s = 0.0 if self.request.is_eager else RETRY_DELAY_S
        if attempt.end_with_error(error, retry_delay_s=delay_s) == "failed":
            raise JobFailed(error.code) from None
        retry = self.retry(
            args=(dispatch.message(attempt.claim.record),),
            countdown=delay_s + PUBLISH_SLACK_S,
            exc=JobFailed(error.code),
            throw=False,
        )
        dispatch.note_published(attempt.claim.record)
        raise retry


def _perform(attempt: Attempt, generate: Callable[[], Outcome]) -> OurvidzError | None:
    """Generate, publish and commit the outcome of an attempt. Returns the error that it failed with before
    the commit, without its traceback. Raises `FenceLost`."""
    try:
        outcome = generate()
        attempt.publish(outcome)
    except FenceLost:
        raise
    except Exception as failure:  # noqa: BLE001  every error ends the attempt in the ledger
        return to_job_error(failure, attempt.claim.job_id)
    attempt.commit(outcome)
    return None


def _refuse_options(options: dict[str, Any]) -> None:
    """Raise `InvalidParameters` for options that would be ignored: a second task of a chain would be lost."""
    for name in UNSUPPORTED_OPTIONS:
        if options.get(name):
            message = f"{name} is not supported for a payload: a job is submitted alone and runs when it can."
            raise InvalidParameters(message, field=name, rule="not given")
