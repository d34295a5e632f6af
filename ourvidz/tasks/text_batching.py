"""The jobs that one running task decodes together: its own, and companions it claims from the ledger."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Literal, cast

from ourvidz import __version__, dispatch, log
from ourvidz.claims import claim_companion
from ourvidz.errors import CallerError, OurvidzError, OutOfMemory, WorkerUnavailable
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Claim, Record
from ourvidz.tasks.attempt import Attempt, known
from ourvidz.tasks.base import PUBLISH_SLACK_S, RETRY_DELAY_S
from ourvidz.wiring import control
from ourvidz.workflows.chat import FAILED, unenhanced
from ourvidz.workflows.run import FenceLost, LeasedRun

LOOK_EVERY_S = 0.02
"""How often the ledger is asked who waits: a fraction of what a token takes."""
ADMISSION_WINDOW_S = 30.0
"""How long a task takes companions in: then the next message gets its turn, whatever it is for."""

_log = log.get(__name__)


class ClaimedTurn:
    """One claimed text job; implements the workflow's `Turn`."""

    def __init__(self, claim: Claim, family: str, *, retry_delay_s: float) -> None:
        self._attempt = Attempt(claim, family)
        self._retry_delay_s = retry_delay_s
        self._lease = ExitStack()
        self.ending: Literal["done", "again", "failed", "lost"] | None = None
        self.error: OurvidzError | None = None
        self.run: LeasedRun = self._lease.enter_context(self._attempt.running())

    @property
    def job(self) -> ChatJob:
        """What was asked for."""
        return cast(ChatJob, self._attempt.claim.job)

    def end(self, outcome: Outcome) -> None:
        """Commit the outcome and have it delivered."""
        with self._lease:
            try:
                self._attempt.finish(outcome)
            except FenceLost as lost:
                self._let_go(lost)
            else:
                self.ending = "done"
        self._deliver()

    def fail(self, error: Exception) -> None:
        """Have the job run again, or commit its failure and have that delivered."""
        with self._lease:
            if isinstance(error, FenceLost):
                self._let_go(error)
                return
            self.error = known(error, self.job.id)
            try:
                self.ending = self._attempt.settle(
                    self.error, retry_delay_s=self._retry_delay_s, instead=self._instead(self.error)
                )
            except (FenceLost, WorkerUnavailable) as lost:
                self._let_go(lost)
                return
        if self.ending == "again":
            dispatch.publish(self._attempt.claim.record, delay_s=self._retry_delay_s + PUBLISH_SLACK_S)
        self._deliver()

    def _instead(self, error: OurvidzError) -> Outcome | None:
        """An enhancement that cannot be had is the original prompt, unless its caller must hear of it."""
        if self.job.type != "chat_enhance" or isinstance(error, CallerError):
            return None
        return unenhanced(self.job, FAILED, {"worker_version": __version__})

    def _let_go(self, why: Exception) -> None:
        _log.warning("fence_lost", job_id=self.job.id, reason=type(why).__name__)
        self.ending = "lost"

    def _deliver(self) -> None:
        dispatch.deliver(self.job.id)


class ClaimedCompany:
    """Who is decoded together; implements the workflow's `JobSource`. `limit` texts at a time, 1 for none."""

    def __init__(self, claim: Claim, family: str, *, limit: int, eager: bool) -> None:
        self._family = family
        self._worker_id = claim.record.worker_id or ""
        self._limit = limit
        self._retry_delay_s = 0.0 if eager else RETRY_DELAY_S
        self._look_at = 0.0
        self._until = time.monotonic() + ADMISSION_WINDOW_S
        self.first = ClaimedTurn(claim, family, retry_delay_s=self._retry_delay_s)
        self._turns = [self.first]
        if eager or OutOfMemory.code in claim.record.failures:
            self._until = 0.0

    def joining(self, first: ChatJob, *, present: int) -> list[ClaimedTurn]:
        """The next waiting jobs for the same model, up to the first that is something else: it must not be
        overtaken for ever."""
        now = time.monotonic()
        if present >= self._limit or now > self._until or (present and now < self._look_at):
            return []
        self._look_at = now + LOOK_EVERY_S
        before = len(self._turns)
        try:
            self._take(first, room=self._limit - present)
        except WorkerUnavailable:
            # Every look at a ledger that is away takes seconds, in which no text grows.
            self._until = 0.0
            _log.warning("company_unknown", job_id=first.id)
        except Exception:  # noqa: BLE001  a neighbour that cannot be read must not end the texts that grow
            self._until = 0.0
            _log.exception("company_unreadable", job_id=first.id)
        return self._turns[before:]

    def fail(self, failure: Exception) -> None:
        """What ends all that are still open."""
        for turn in self._turns:
            if turn.ending is None:
                turn.fail(failure)

    def _take(self, first: ChatJob, *, room: int) -> None:
        ledger = control.current().ledger
        for record in ledger.queued(first.queue, limit=room):
            if record.cancel_requested or record.due_at > ledger.now():
                continue
            claim = claim_companion(record, worker_id=self._worker_id) if self._fits(record, first) else None
            if claim is None:
                # Paused, drained, taken by somebody else, or not for this batch: let the messages decide.
                self._until = 0.0
                return
            self._turns.append(ClaimedTurn(claim, self._family, retry_delay_s=self._retry_delay_s))
            dispatch.deliver(record.job_id)

    def _fits(self, record: Record, first: ChatJob) -> bool:
        job = control.current().ledger.job(record.job_id)
        alone = OutOfMemory.code in record.failures
        return isinstance(job, ChatJob) and job.model == first.model and not alone
