"""The ledger as a protocol: every verb is atomic, and safe to send twice.

Two implementations obey it, Redis and memory; `tests/ledger/` runs one behaviour suite on both. The
clock is the store's own (the Redis server's in production), so hosts with wrong clocks agree on leases.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal, Protocol

from ourvidz.jobs.job import Job
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import (
    Admission,
    Claim,
    DeliveryState,
    Enhancement,
    OutboxEvent,
    Page,
    Record,
    StreamItem,
    Verdict,
    Worker,
)


class JobLedger(Protocol):
    """The life of a job."""

    def now(self) -> float:
        """The ledger's clock."""

    # -- the door
    def register(self, job: Job, *, priority: int, quiet: bool = False) -> Admission:
        """Write down a new job as `queued`, run 1, attempt 0, due now; or find what stands under its id.

        Nothing changes when the id is taken. Adds a `state` item to the job's stream. No run of a `quiet` job
        ever writes an outbox row.
        """

    def reopen(self, job_id: str, *, priority: int) -> Record:
        """Queue a failed or cancelled job again as its next run: attempt, failures, progress, outcome,
        wording, what was streamed and the cancel flag start afresh, the fence goes on. `NotFound`, or
        `Conflict` in any other state or when the job document is gone."""

    def published(self, job_id: str, run: int) -> None:
        """Note that a message for this run was handed to the broker (`published_at`, `publishes` + 1)."""

    # -- a run
    def claim(self, job_id: str, run: int, *, worker_id: str, lease_s: float, token: str) -> Claim | None:
        """Compare-and-set `queued` → `processing`: attempt + 1, fence + 1, a lease, a `processing` outbox row
        (due now) and a `state` item. None when the job is not queued, is another run's, is not due yet, is
        asked to cancel, or its queue is paused or the worker draining (then the record is marked unpublished
        so that the sweep publishes it again). The same `token` sent twice gets the same claim again.

        An enhancement that is still wanted is over with it: the record's `wording` is the run's."""

    def step(
        self,
        claim: Claim,
        *,
        progress: float | None = None,
        stage: str | None = None,
        items: Iterable[tuple[Literal["progress", "preview", "token"], dict[str, Any]]] = (),
        tell: bool = False,
    ) -> Verdict:
        """Note progress (0 to 100, never going back within an attempt) and stream items; with `tell` also
        write a `processing` outbox row that carries the progress in its metadata. A token marks the run as
        `streamed`. Hear whether to go
        on, to stop because the caller cancelled, or to stop because the fence is lost. A lost fence changes
        nothing."""

    def renew(self, claim: Claim, *, lease_s: float) -> bool:
        """Lengthen the lease to now + lease_s. False when the fence is lost."""

    def release(self, claim: Claim, *, code: str, due_in_s: float) -> bool:
        """Give an attempt back to the queue after a failure with `code` (failures[code] + 1), due later.
        False when the fence is lost. The fence grows, so that the attempt can change nothing any more."""

    def end(
        self, job_id: str, *, run: int, fence: int, outcome: Outcome, worker_id: str | None = None
    ) -> bool:
        """Commit the terminal state and its outbox row (due now), in one transaction; adds a `done` item.

        Works on a `queued` or `processing` record with exactly this run and fence. The same commit sent
        twice answers True twice and writes one row. False when the fence is lost. On `completed`, job
        documents over the size limit are dropped at once, other oversized ones after the retry window."""

    def lose(self, job_id: str, *, fence: int, counted: bool = True) -> bool:
        """Take the lease away from a `processing` attempt and queue the job again, due now, unpublished.
        `counted`: failures[WORKER_LOST] + 1; else the attempt does not count (attempt - 1). False when the
        fence is lost, or the job is not `repeatable`."""

    def held_by(self, worker_id: str) -> list[Record]:
        """The attempts whose lease a worker holds, expired or not."""

    def request_cancel(self, job_id: str) -> Record:
        """Raise the cancel flag; the record as it now stands. `NotFound`; `Conflict` when it is finished."""

    def delete(self, job_id: str) -> Record:
        """Forget a finished job with its stream, document and outbox rows. `NotFound`; `Conflict` while it
        is not finished or its terminal callback is still pending."""

    # -- the words of a queued job
    def begin_enhancing(self, job_id: str, run: int, *, lease_s: float, token: str) -> Enhancement | None:
        """Take a lease on finding the words of a job: stage `enhancing`, the job stays queued. None when it
        is not queued, is another run's, is asked to cancel, its enhancement is not wanted (any more), or
        another token's lease is alive. The same `token` sent twice gets the same again."""

    def keep_enhancing(self, held: Enhancement, *, lease_s: float) -> Verdict:
        """Lengthen the lease to now + lease_s and hear whether to go on, to stop because the caller
        cancelled, or to stop because the enhancement is somebody else's or no longer wanted."""

    def end_enhancing(self, held: Enhancement, *, wording: dict[str, Any]) -> bool:
        """Write down what was found; the stage is cleared. The same sent twice answers True twice. False when
        the enhancement is somebody else's or no longer wanted."""

    def give_up_enhancing(self, job_id: str, *, run: int, reason: str) -> bool:
        """The job is to go on without an enhancement: its wording is `{"reason": reason}`, a sentence for the
        caller. False when it is not queued, is another run's, or its words were found."""

    # -- reading
    def get(self, job_id: str) -> Record | None:
        """The record, or None."""

    def job(self, job_id: str) -> Job | None:
        """The job document, or None when there is none (any more)."""

    def page(
        self,
        *,
        user_id: str | None = None,
        type: str | None = None,
        status: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Records, newest first. `InvalidParameters(field="cursor")` for a cursor that is none of ours."""

    def position(self, job_id: str) -> int | None:
        """0 for the next to start in its queue; None when it is not queued."""

    def depth(self, queue: str) -> int:
        """How many jobs are queued, waiting for a due time or not."""

    def stream(self, job_id: str, *, after: str = "0", limit: int = 500) -> list[StreamItem]:
        """The items of a job's stream after an id, oldest first. Bounded: old ones are trimmed."""

    def follow(self, job_id: str, *, after: str = "0") -> AsyncIterator[StreamItem]:
        """The items after an id as they come, ending after `done` of the current run. For the event
        stream."""

    def counts(self) -> dict[str, int]:
        """Counters since the beginning, by dotted name: `jobs.{type}.{ending}`,
        `callbacks.delivered|retried|dead`,
        `attempts.released.{code}`, `assets.unsigned`; and `generation_ms.{type}.sum`."""


class Sweeping(Protocol):
    """What only the sweep asks."""

    def tick(self) -> float | None:
        """Note that a sweep runs; seconds since the last one, None for the first ever."""

    def expired(self, limit: int = 200) -> list[Record]:
        """`processing` records whose lease is over."""

    def rearm(self, lease_s: float) -> int:
        """Give every `processing` record a lease of lease_s from now; how many."""

    def waiting(self, queue: str, limit: int = 200) -> list[Record]:
        """Queued records in the order in which they will start, due or not."""

    def claimed_order(self, queue: str, priority: int) -> int:
        """The highest `order` ever claimed from this queue at this priority; 0 when none."""

    def claimed_at(self, queue: str, priority: int) -> float:
        """When something was last claimed from this queue at this priority; 0 when never."""

    def empty_since(self, queue: str, empty: bool) -> float | None:
        """Note whether the broker's list is empty now; since when it has been, None while it is not."""

    def lift(self, job_id: str, *, run: int, priority: int) -> bool:
        """Give a queued job a more urgent priority, once; its order stays. False when not queued or
        lifted."""

    def purge(self, *, older_than_s: float, limit: int = 200) -> int:
        """Forget jobs that finished longer ago than this and have no pending callback; how many."""


class Outbox(Protocol):
    """What callers are still to be told."""

    def due(self, limit: int = 500) -> list[str]:
        """Job ids with a row due now that nobody is delivering, each once, most overdue first. Of more than
        `limit` any stretch, so that every one gets its turn."""

    def head(self, job_id: str) -> OutboxEvent | None:
        """The oldest pending row of a job, due or not: rows of one job go out in order."""

    def take(self, job_id: str, *, lease_s: float, token: str) -> OutboxEvent | None:
        """Take the head for one delivery, if it is due and nobody else has it (deliveries + 1)."""

    def delivered(self, event: OutboxEvent, *, status: int) -> None:
        """The receiver took it. `processing` rows are forgotten, terminal ones kept a day for operators."""

    def postpone(self, event: OutboxEvent, *, due_in_s: float, status: int | None, error: str) -> None:
        """Try again later."""

    def bury(self, event: OutboxEvent, *, status: int | None, error: str) -> None:
        """Give up. A `processing` row is forgotten (it gets one attempt), a terminal one becomes a dead
        letter."""

    def event(self, event_id: str) -> OutboxEvent | None:
        """One row by id."""

    def letters(self, state: DeliveryState, limit: int = 100) -> list[OutboxEvent]:
        """Rows in one state, newest first."""

    def replay(self, event_id: str) -> OutboxEvent:
        """Make a dead or delivered row pending again, due now, with its deliveries counted from 0.
        `NotFound` when there is no such row."""


class Fleet(Protocol):
    """Who is at work, and which queues are paused."""

    def beat(self, worker: Worker) -> None:
        """Write down a worker as it is now, seen now."""

    def leave(self, worker_id: str) -> None:
        """A worker says goodbye: it is offline at once."""

    def workers(self) -> list[Worker]:
        """Everyone seen in the last day; those silent for longer than the presence time are `offline`."""

    def queue_seen_at(self, queue: str) -> float | None:
        """When any worker of this queue last beat; None when never."""

    def drain(self, worker_id: str, draining: bool) -> bool:
        """Mark a worker as draining, or not; survives its beats. False when it was never seen."""

    def pause(self, queue: str, paused: bool) -> None:
        """Pause or resume a queue: while it is paused no claim on it is won."""

    def paused(self) -> frozenset[str]:
        """The paused queues."""


class Ledger(JobLedger, Sweeping, Outbox, Fleet, Protocol):
    """All of it, and the life of the connection."""

    def ping(self) -> None:
        """Raise `WorkerUnavailable` when the store cannot be reached."""

    def close(self) -> None:
        """Give the connections back. Safe to call twice."""
