"""The jobs of one text batch: the task's own, and companions claimed from the ledger while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import takewhile
from typing import Literal, cast

from ourvidz import __version__, dispatch, log
from ourvidz.claims import claim_companions
from ourvidz.errors import CallerError, NewerRelease, OurvidzError, OutOfMemory, WorkerLost, WorkerUnavailable
from ourvidz.jobs.job import ChatJob, load_job
from ourvidz.jobs.outcome import Outcome
from ourvidz.records.record import Claim, Record
from ourvidz.tasks.attempt import Attempt, Ending, commit_together, to_job_error
from ourvidz.tasks.base import PUBLISH_SLACK_S, RETRY_DELAY_S
from ourvidz.wiring import control
from ourvidz.workflows.batch_texts import BatchItem, StreamPart
from ourvidz.workflows.chat import ENHANCEMENT_FAILED, fallback_outcome
from ourvidz.workflows.run import FenceLost, LeasedRun
from ourvidz.workflows.text_streams import stream_texts

POLL_INTERVAL_S = 0.02
"""Shortest time between two reads of the queue while texts are decoded: a fraction of a token's time."""
ADMISSION_WINDOW_S = 30.0
"""How long a batch admits companions: after that the next message starts, whichever job it is for."""

_log = log.get(__name__)


class ClaimedItem:
    """One claimed text job; implements the workflow's `BatchItem`. Its lease is renewed until it ends."""

    def __init__(self, claim: Claim, family: str, *, retry_delay_s: float) -> None:
        self.attempt = Attempt(claim, family)
        self._retry_delay_s = retry_delay_s
        self._lease = ExitStack()
        self.ending: Ending | Literal["lost"] | None = None
        """How the attempt ended; `lost` when its fence was, None while it is open."""
        self.error: OurvidzError | None = None
        self.run: LeasedRun = self._lease.enter_context(self.attempt.running())

    @property
    def gpu_s(self) -> float:
        """The GPU-seconds of its text that are not counted yet."""
        return self.attempt.text_gpu_s

    @gpu_s.setter
    def gpu_s(self, seconds: float) -> None:
        self.attempt.text_gpu_s = seconds

    @property
    def job(self) -> ChatJob:
        """The job."""
        return cast(ChatJob, self.attempt.claim.job)

    def end(self, outcome: Outcome) -> None:
        """Commit the outcome."""
        self.conclude(*commit_together([(self.attempt, outcome)]))

    def end_or_abandon(self, outcome: Outcome) -> None:
        """Commit the outcome, and leave a job to the sweep if that fails: the others of its batch go on."""
        try:
            self.end(outcome)
        except Exception as error:  # noqa: BLE001
            with self._lease:
                self._abandon(error)

    def conclude(self, committed: bool) -> None:
        """Release the lease after a commit, which was refused if the fence was lost."""
        with self._lease:
            if committed:
                self.gpu_s = 0.0  # the outcome reports them
                self.ending = "completed"
            else:
                self._abandon(FenceLost(self.job.id))

    def fail(self, error: Exception) -> None:
        """End the attempt with an error: publish the retry, or commit the failure."""
        with self._lease:
            if isinstance(error, FenceLost):
                self._abandon(error)
                return
            self.error = to_job_error(error, self.job.id)
            try:
                self.ending = self.attempt.end_with_error(
                    self.error, retry_delay_s=self._retry_delay_s, fallback=self._fallback(self.error)
                )
            except (FenceLost, WorkerUnavailable) as lost:
                self._abandon(lost)
                return
        if self.ending == "retry":
            dispatch.publish(self.attempt.claim.record, delay_s=self._retry_delay_s + PUBLISH_SLACK_S)

    def _fallback(self, error: OurvidzError) -> Outcome | None:
        """The outcome in place of a failure: the original prompt for an enhancement, except for errors that
        the caller must see."""
        if self.job.type != "chat_enhance" or isinstance(error, CallerError):
            return None
        return fallback_outcome(self.job, ENHANCEMENT_FAILED, {"worker_version": __version__})

    def _abandon(self, reason: Exception) -> None:
        _log.warning("fence_lost", job_id=self.job.id, reason=type(reason).__name__)
        self.ending = "lost"


class ClaimedJobs:
    """The jobs of one batch; implements the workflow's `JobSource`.

    `limit` is the largest batch size. No companions are claimed in eager mode, nor for a job that must run
    alone.
    """

    def __init__(self, claim: Claim, family: str, *, limit: int, eager: bool) -> None:
        self._family = family
        self._worker_id = claim.record.worker_id or ""
        self._limit = limit
        self._retry_delay_s = 0.0 if eager else RETRY_DELAY_S
        self._next_poll_at = 0.0
        self._admits_until = time.monotonic() + ADMISSION_WINDOW_S
        self.first = ClaimedItem(claim, family, retry_delay_s=self._retry_delay_s)
        self._items = [self.first]
        if eager or _must_run_alone(claim.record):
            self._admits_until = 0.0

    def next_items(self, first: ChatJob, *, batch_size: int) -> list[ClaimedItem]:
        """Claim the next queued jobs for the same model, up to the first job that does not fit: it must not
        be overtaken for long."""
        now = time.monotonic()
        polled = batch_size > 0 and now < self._next_poll_at
        if batch_size >= self._limit or now > self._admits_until or polled:
            return []
        self._next_poll_at = now + POLL_INTERVAL_S
        before = len(self._items)
        try:
            self._claim_companions(first, limit=self._limit - batch_size)
        except WorkerUnavailable:
            # Every call to a ledger that is away takes seconds, in which no text is decoded.
            self._admits_until = 0.0
            _log.warning("company_unknown", job_id=first.id)
        except Exception:  # noqa: BLE001  a queued job that cannot be read must not end the running texts
            self._admits_until = 0.0
            _log.exception("company_unreadable", job_id=first.id)
        return self._items[before:]

    def stream_texts(self, parts: Sequence[StreamPart]) -> list[bool | Exception]:
        """Append new text to the jobs' streams, in one round trip."""
        runs = [(cast(ClaimedItem, part.item).run, part) for part in parts]
        return stream_texts(runs, control.current().ledger)

    def end(self, outcomes: Sequence[tuple[BatchItem, Outcome]]) -> None:
        """Commit the outcomes of several jobs, in one round trip."""
        items = [cast(ClaimedItem, item) for item, _ in outcomes]
        attempts = [(item.attempt, outcome) for item, (_, outcome) in zip(items, outcomes, strict=True)]
        try:
            answers = commit_together(attempts)
        except Exception:  # noqa: BLE001  what is stored of one of them cannot be read
            _log.exception("not_ended_together", job_ids=[item.job.id for item in items])
            for item, (_, outcome) in zip(items, outcomes, strict=True):
                item.end_or_abandon(outcome)
        else:
            for item, committed in zip(items, answers, strict=True):
                item.conclude(committed)

    def fail_open(self, error: Exception) -> None:
        """Fail every job that has not ended."""
        for item in self._items:
            if item.ending is None:
                item.fail(error)

    def _claim_companions(self, first: ChatJob, *, limit: int) -> None:
        startable = control.current().ledger.startable(first.queue, limit)
        fitting = list(takewhile(lambda row: _fits(*row, first), startable))
        records = [record for record, _ in fitting]
        claims = claim_companions(records, worker_id=self._worker_id, beside=self.first.job.id)
        won = [claim for claim in claims if claim is not None]
        self._items += [ClaimedItem(claim, self._family, retry_delay_s=self._retry_delay_s) for claim in won]
        if len(won) < len(startable):
            # Paused, drained, claimed elsewhere, or not for this batch: their own messages decide.
            self._admits_until = 0.0


def _fits(record: Record, document: str, first: ChatJob) -> bool:
    """Whether a queued job may join a batch: a text job for the same model that need not run alone. A
    document of a newer release is left to a newer worker."""
    try:
        job = load_job(document) if document else None
    except NewerRelease:
        return False
    return isinstance(job, ChatJob) and job.model == first.model and not _must_run_alone(record)


def _must_run_alone(record: Record) -> bool:
    """Whether a job may not share a batch: a worker was lost with it, or it ran out of memory."""
    return record.alone or not record.failures.keys().isdisjoint({OutOfMemory.code, WorkerLost.code})
