"""The nouns of the ledger. Times are Unix seconds of the ledger's own clock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from ourvidz.jobs.job import ChatJob, Job, VideoJob
from ourvidz.jobs.outcome import JobError, Outcome, OutcomeStatus

RECORD_VERSION = 1

Status = Literal["queued", "processing", "completed", "failed", "cancelled"]
EnhancementState = Literal["wanted", "over"]
FINISHED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
ENHANCING = "enhancing"
"""The stage of a queued job whose words are being found."""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything the ledger keeps of a job besides the job itself.

    `run` counts submissions (1, then one more for every operator retry), `attempt` the claims within a
    run that count, `fence` every claim ever: whoever holds an older fence may no longer change anything.
    `order` is the place in the line of arrivals. `failures` counts released attempts of this run by code.

    `quiet`: its caller hears nothing but the answer, so it has no outbox rows. `one_shot`: its caller reads
    along, so what was `streamed` in this run cannot be taken back. `enhancement` is None for a job whose
    prompt is used as it is, `wanted` until its words are found or given up, then `over`; `wording` is what
    was found, for every attempt of the run.
    """

    job_id: str
    type: str
    queue: str
    user_id: str | None
    status: Status
    run: int
    attempt: int
    fence: int
    priority: int
    order: int
    created_at: float
    queued_at: float
    due_at: float
    claimed_at: float | None
    finished_at: float | None
    published_at: float | None
    publishes: int
    progress: float
    stage: str | None
    worker_id: str | None
    lease_until: float | None
    cancel_requested: bool
    fingerprint: str
    callback_url: str | None
    facts: dict[str, Any]
    failures: dict[str, int]
    outcome: Outcome | None
    quiet: bool = False
    one_shot: bool = False
    streamed: bool = False
    enhancement: EnhancementState | None = None
    wording: dict[str, Any] | None = None
    version: int = RECORD_VERSION

    @property
    def finished(self) -> bool:
        """Whether this run has its terminal state."""
        return self.status in FINISHED

    @property
    def repeatable(self) -> bool:
        """Whether another attempt may follow: nobody has read the beginning of this one."""
        return not (self.one_shot and self.streamed)


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a registration. `created` is true for exactly one caller; `same` tells whether the
    job that already stood under this id asks for the same work."""

    created: bool
    same: bool
    record: Record


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one attempt of a job, until the lease ends or a newer fence appears."""

    job: Job
    record: Record

    @property
    def job_id(self) -> str:
        return self.record.job_id

    @property
    def run(self) -> int:
        return self.record.run

    @property
    def fence(self) -> int:
        return self.record.fence


@dataclass(frozen=True, slots=True)
class Enhancement:
    """The right to find the words of a queued job, until the lease ends and somebody else begins."""

    job: Job
    record: Record
    token: str

    @property
    def job_id(self) -> str:
        return self.record.job_id

    @property
    def run(self) -> int:
        return self.record.run


def is_one_shot(job: Job) -> bool:
    """Whether the caller of a job reads its answer while it grows."""
    return isinstance(job, ChatJob) and job.stream


def wants_enhancement(job: Job) -> bool:
    """Whether a language model is to find the words a job is generated from."""
    return isinstance(job, VideoJob) and job.enhance_prompt


class Verdict(StrEnum):
    """What a running attempt is told at each step."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LOST = "lost"


DeliveryState = Literal["pending", "delivered", "dead"]


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """One thing to tell the caller. `sequence` grows over the whole life of a job.

    `kind` is `processing` or the ending; `attempt` the attempt it speaks of; `deliveries` how often it
    was posted; `last_error` why the last post failed.
    """

    event_id: str
    job_id: str
    run: int
    sequence: int
    kind: Literal["processing"] | OutcomeStatus
    attempt: int
    at: float
    queued_at: float
    claimed_at: float | None
    worker_id: str | None
    callback_url: str | None
    facts: dict[str, Any]
    outcome: Outcome | None
    state: DeliveryState
    due_at: float
    deliveries: int
    last_status: int | None = None
    last_error: str | None = None
    settled_at: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        """Whether this event ends a run."""
        return self.kind != "processing"

    @property
    def error(self) -> JobError | None:
        """Why the job failed, if it did."""
        return self.outcome.error if self.outcome else None


def event_id(record: Record, sequence: int) -> str:
    """The receiver's idempotency key: the same over all deliveries of one event, and another one for a
    new job under the id of a deleted one, whose `order` is another.

    SHA-1, because a Redis script can compute it where the sequence is drawn; nothing secret depends on it.
    """
    named = f"{record.job_id}\0{record.order}\0{record.run}\0{sequence}".encode()
    return "msg_" + hashlib.sha1(named, usedforsecurity=False).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One line of a job's live stream. `id` orders them and resumes a reader."""

    id: str
    kind: Literal["state", "progress", "preview", "token", "done"]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some records, newest first, and where to go on (None at the end)."""

    records: list[Record]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker that has been seen. `state` is what it said last; a worker whose heartbeat is older than
    the presence time is `offline`."""

    id: str
    family: str
    queue: str
    host: str
    pid: int
    gpu: str | None
    state: Literal["starting", "idle", "busy", "draining", "offline"]
    models: tuple[str, ...]
    version: str
    started_at: float
    seen_at: float
    draining: bool = False
    detail: dict[str, Any] = field(default_factory=dict)
