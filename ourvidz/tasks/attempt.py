"""The one ladder that decides how an attempt ends: done, again, or failed with a code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from ourvidz import __version__, dispatch, log
from ourvidz.errors import InternalError, OperatorError, OurvidzError, SettingsError, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim
from ourvidz.wiring import control, loading
from ourvidz.workflows.run import FenceLost, LeasedRun
from ourvidz.workflows.services import Services

COMMIT_PATIENCE_S = 60.0
"""How long a finished attempt waits for a ledger that is away."""
COMMIT_PAUSE_S = 0.5

Ending = Literal["done", "again", "failed"]

_log = log.get(__name__)


def told(error: OurvidzError) -> OurvidzError:
    """What a caller may hear: an operator's errors name paths of this machine, which are for our log."""
    if isinstance(error, SettingsError):
        return InternalError("the worker is not set up; its operators have the details")
    if isinstance(error, OperatorError):
        return type(error)("the worker is not set up for this job; its operators have the details")
    return error


def known(error: Exception, job_id: str) -> OurvidzError:
    """The error of the tree that an attempt failed with; what is none of ours is logged and told as such."""
    if isinstance(error, OurvidzError):
        return error
    _log.error("internal_error", job_id=job_id, exc_info=error)
    return InternalError("the worker failed; the operators have the details")


def services(family: str) -> Services:
    """What the workflows of this worker are given. Builds its models on first use."""
    at = control.current()
    return Services(
        models=loading.models(at.settings, family),
        store=at.store,
        gate=at.gate,
        references=at.references,
        signer=at.signer,
        moderation=at.moderation,
    )


class Attempt:
    """One won claim, from its lease to its ending. A lost fence is `FenceLost`: nothing may change then."""

    def __init__(self, claim: Claim, family: str) -> None:
        self.claim = claim
        self._family = family

    @contextmanager
    def running(self) -> Iterator[LeasedRun]:
        """Keep the lease while this lasts."""
        at, job_id = control.current(), self.claim.job_id
        with LeasedRun(
            self.claim,
            at.ledger,
            lease_s=at.settings.lease_s,
            limit_s=dispatch.time_limit_s(self.claim.job.type),
            on_told=partial(dispatch.deliver, job_id) if at.settings.progress_callbacks else None,
            previews=at.settings.previews,
        ) as run:
            yield run

    def finish(self, outcome: Outcome) -> None:
        """Commit how the job ended, however long the ledger takes to come back within a minute."""
        claim, ledger = self.claim, control.current().ledger
        patience_ends = time.monotonic() + COMMIT_PATIENCE_S
        while True:
            try:
                kept = ledger.end(
                    claim.job_id,
                    run=claim.run,
                    fence=claim.fence,
                    outcome=outcome,
                    worker_id=claim.record.worker_id,
                )
                break
            except WorkerUnavailable:
                if time.monotonic() > patience_ends:
                    _log.error("commit_given_up", job_id=claim.job_id)
                    raise FenceLost(claim.job_id) from None
                time.sleep(COMMIT_PAUSE_S)
        if not kept:
            raise FenceLost(claim.job_id)

    def settle(
        self, error: OurvidzError, *, retry_delay_s: float, instead: Outcome | None = None
    ) -> Literal["again", "failed", "done"]:
        """Give the job back to the queue if this error may be tried again, else commit the failure, or what
        the job can end with `instead`. Publishes nothing."""
        claim = self.claim
        tried = claim.record.failures.get(error.code, 0) + 1
        _log.warning(
            "attempt_failed", job_id=claim.job_id, code=error.code, tried=tried, reason=error.message
        )
        if error.scope == "job" and tried < error.attempts and self._repeatable():
            if not control.current().ledger.release(claim, code=error.code, due_in_s=retry_delay_s):
                raise FenceLost(claim.job_id)
            return "again"
        if instead is not None:
            self.finish(instead)
            return "done"
        self.finish(Outcome.failure(told(error), **self._known()))
        return "failed"

    def _repeatable(self) -> bool:
        """Whether another attempt may follow: a caller who reads along has read nothing yet."""
        record = self.claim.record
        return not record.one_shot or (control.current().ledger.get(record.job_id) or record).repeatable

    def _known(self) -> dict[str, Any]:
        """What a failed job's callback tells besides the error."""
        known: dict[str, Any] = {"worker_version": __version__}
        models = loading.loaded(self._family)
        try:
            return known | (models.memory() if models else {})
        except Exception:  # noqa: BLE001  a broken GPU must not keep its job from ending
            _log.exception("memory_unknown")
            return known
