"""The retry policy: the one place that decides how an attempt ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from ourvidz import __version__, dispatch, drain_notice, log
from ourvidz.errors import InternalError, OperatorError, OurvidzError, SettingsError, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.records.calls import Commit
from ourvidz.records.gpu_usage import usage_amounts
from ourvidz.records.record import Claim
from ourvidz.wiring import control, loading
from ourvidz.workflows.checkpoints import JobCheckpoints
from ourvidz.workflows.run import FenceLost, LeasedRun
from ourvidz.workflows.services import Services, gpu_usage_metadata, take_gpu_seconds

LEDGER_RETRY_DELAY_S = 0.5
"""Pause between two tries to reach a ledger that is away."""

DENOISING_FAMILIES = ("sdxl", "wan")

Answer = TypeVar("Answer")
Ending = Literal["completed", "retry", "failed"]
"""How an attempt ended: committed as completed, given back to the queue, or committed as failed."""

_log = log.get(__name__)


def to_job_error(error: Exception, job_id: str) -> OurvidzError:
    """Return the error itself if it is one of ours; log any other and return an `InternalError`.

    The result has no traceback and no cause: their frames would keep the images and tensors of the failed
    pass while its end is committed, and as a cycle until the next full garbage collection.
    """
    if isinstance(error, OurvidzError):
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error
    _log.error("internal_error", job_id=job_id, exc_info=error)
    return InternalError("the worker failed; the operators have the details")


def public_error(error: OurvidzError) -> OurvidzError:
    """Return the error that the caller may see: the messages of operator errors name paths of this host, so
    they are replaced."""
    if isinstance(error, SettingsError):
        return InternalError("the worker is not set up; its operators have the details")
    if isinstance(error, OperatorError):
        return type(error)("the worker is not set up for this job; its operators have the details")
    return error


def services(family: str) -> Services:
    """Return the services of this worker's workflows. Builds its models on first use."""
    app = control.current()
    models = loading.models(app.settings, family)
    return Services(
        models=models,
        device=loading.device_share(models),
        store=app.store,
        gate=app.gate,
        references=app.references,
        signer=app.signer,
        moderation=app.moderation,
        pictures=app.pictures,
        gpu_price=app.settings.gpu_price,
    )


def until_reached(call: Callable[[], Answer], job_id: str) -> Answer:
    """Call the ledger, again for as long as it is away, and return its answer.

    Without a time limit: no lease ends while the server is away, nor right after, so only the answer can tell
    whether the work of this attempt still counts. Celery's hard time limit ends a task that waits for ever.
    """
    while True:
        try:
            return call()
        except WorkerUnavailable:
            _log.warning("end_postponed", job_id=job_id)
            time.sleep(LEDGER_RETRY_DELAY_S)


def commit_together(outcomes: Sequence[tuple[Attempt, Outcome]]) -> list[bool]:
    """Commit the outcomes of several attempts in one round trip, and wait for a ledger that is away. Returns
    for each whether it is committed: False once another worker has the job."""
    commits = [attempt.commit_request(outcome) for attempt, outcome in outcomes]
    job_ids = ",".join(attempt.claim.job_id for attempt, _ in outcomes)
    answers = until_reached(lambda: control.current().ledger.ends(commits), job_ids)
    for (attempt, _), commit, committed in zip(outcomes, commits, answers, strict=True):
        if committed:
            attempt.note_commit(commit)
    return answers


class Attempt:
    """One claimed attempt, from its lease to its commit. Every method raises `FenceLost` once another worker
    has the job, and waits for a ledger that is away."""

    def __init__(
        self, claim: Claim, family: str, *, is_preempted: Callable[[], bool] = lambda: False
    ) -> None:
        self.claim = claim
        self.text_gpu_s = 0.0
        """GPU-seconds of a text that no outcome has reported."""
        self._is_preempted = is_preempted
        self._family = family
        self._run: LeasedRun | None = None

    @contextmanager
    def running(self) -> Iterator[LeasedRun]:
        """Renew the lease inside this context; yields the run for the workflow."""
        app = control.current()
        with LeasedRun(
            self.claim,
            app.ledger,
            lease_s=app.settings.lease_s,
            limit_s=dispatch.time_limit_s(self.claim.job.type),
            progress_events=app.settings.progress_callbacks,
            previews=app.settings.previews,
            checkpoints=self._checkpoints(),
        ) as run:
            self._run = run
            try:
                yield run
            finally:
                self._add_usage(self._usage_metadata())

    def _add_usage(self, metadata: Mapping[str, Any]) -> None:
        """Add the GPU-seconds that no stored outcome reports to the usage of today: those of an attempt that
        is repeated, or whose fence was lost. They are not worth a wait for a ledger that is away."""
        amounts = usage_amounts(self.claim.user_id, self.claim.type, metadata, jobs=0)
        if amounts:
            try:
                control.current().ledger.add_gpu_usage(amounts)
            except WorkerUnavailable:
                _log.warning("usage_lost", job_id=self.claim.job_id)

    def _usage_metadata(self) -> dict[str, Any]:
        """What this attempt used of the GPU since it was last asked."""
        settings = control.current().settings
        models = loading.loaded(settings, self._family)
        seconds = {} if models is None else take_gpu_seconds(models)
        if self.text_gpu_s:
            seconds, self.text_gpu_s = seconds | {"decode": self.text_gpu_s}, 0.0
        return gpu_usage_metadata(seconds, price=settings.gpu_price)

    def _checkpoints(self) -> JobCheckpoints | None:
        """The checkpoints of this job's denoising; None for texts, and where they are switched off."""
        app = control.current()
        if self._family not in DENOISING_FAMILIES or not app.settings.checkpoint_s:
            return None
        return JobCheckpoints(
            self.claim,
            app.store,
            interval_s=app.settings.checkpoint_s,
            is_draining=drain_notice.is_draining,
            is_preempted=self._is_preempted,
        )

    def publish(self, outcome: Outcome) -> None:
        """Move the files of the outcome to their final keys; see `LeasedRun.publish`."""
        assert self._run is not None
        self._run.publish(outcome)

    def commit(self, outcome: Outcome) -> None:
        """Commit the outcome."""
        (committed,) = commit_together([(self, outcome)])
        if not committed:
            self._add_usage(outcome.metadata)
            raise FenceLost(self.claim.job_id)

    def commit_request(self, outcome: Outcome) -> Commit:
        """What the ledger is asked for the commit of the outcome."""
        emptied = self._run.emptied_folders() if self._run else []
        worker_id = self.claim.record.worker_id
        return Commit(self.claim, outcome, worker_id=worker_id, emptied_folders=emptied)

    def note_commit(self, commit: Commit) -> None:
        """Note that the outcome is committed."""
        if self._run is not None:
            self._run.note_commit(list(commit.emptied_folders))
        control.current().ended_jobs.report(self.claim, commit.outcome)

    def end_with_error(
        self, error: OurvidzError, *, retry_delay_s: float, fallback: Outcome | None = None
    ) -> Ending:
        """End the attempt after an error: release the job for a retry in `retry_delay_s` seconds if the error
        class allows another attempt, else commit `fallback` if there is one, else the failure.

        Publishes nothing.
        """
        claim = self.claim
        tried = claim.record.failures.get(error.code, 0) + 1
        _log.warning(
            "attempt_failed", job_id=claim.job_id, code=error.code, tried=tried, reason=error.message
        )
        if error.scope == "job" and tried < error.attempts and self._is_repeatable():
            ledger = control.current().ledger
            if not until_reached(
                lambda: ledger.release(claim, code=error.code, due_in_s=retry_delay_s), claim.job_id
            ):
                raise FenceLost(claim.job_id)
            return "retry"
        if fallback is not None:
            self.commit(fallback)
            return "completed"
        self.commit(Outcome.failure(public_error(error), **self._metadata()))
        return "failed"

    def _is_repeatable(self) -> bool:
        """Whether another attempt may follow: no part of a streamed answer has been sent yet."""
        record, ledger = self.claim.record, control.current().ledger
        if not record.one_shot:
            return True
        return (until_reached(lambda: ledger.get(record.job_id), record.job_id) or record).repeatable

    def _metadata(self) -> dict[str, Any]:
        """The metadata of a failed job's callback: worker version, and the GPU memory if it can be read."""
        metadata: dict[str, Any] = {"worker_version": __version__, **self._usage_metadata()}
        models = loading.loaded(control.current().settings, self._family)
        try:
            return metadata | (models.memory() if models else {})
        except Exception:  # noqa: BLE001  a broken GPU must not keep its job from ending
            _log.exception("memory_unknown")
            return metadata
