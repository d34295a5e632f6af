"""The types of the ledger. Times are Unix seconds of the ledger's clock."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from ourvidz.jobs.job import ChatJob, Job, VideoJob
from ourvidz.jobs.outcome import JobError, Outcome, OutcomeStatus
from ourvidz.jobs.versions import FIRST_VERSION
from ourvidz.records.allowances import Standing
from ourvidz.records.registrations import REGISTRATION_KINDS, RegistrationKind

RECORD_VERSION = 2
"""The newest record version that this release reads. Version 2: the version of the job document must be read
before the document."""

Status = Literal["queued", "processing", "completed", "failed", "cancelled"]
EnhancementState = Literal["wanted", "over"]
FINISHED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
ENHANCING = "enhancing"
"""The stage of a queued job while its prompt is being enhanced."""
WAITING_FOR_GPU = "waiting_for_gpu"
"""The stage of a job that waits until other workers of its GPU have freed memory."""
PREEMPTED = "preempted"
"""The stage of a job that has yielded to another one of its worker."""
PAUSES = frozenset({WAITING_FOR_GPU, PREEMPTED})
"""The stages in which a job computes nothing."""
NO_STAGE = "-"
"""Reported by an attempt whose stage has ended."""


@dataclass(frozen=True, slots=True)
class Record:
    """The state of a job: everything the ledger stores besides the job document.

    `run` counts submissions: 1, then one more for every operator retry. `attempt` counts the claims of this
    run, without those whose worker handed the job back. Every registration, claim, release and rescue draws a
    new, higher `fence`. `token` is that of the latest claim, None while the job is queued. A claim with
    another fence or token can change nothing any more. `order` numbers registrations and retries; within a
    priority the lower order starts first. `failures` counts the failed attempts of this run by error code.
    `callback_metadata` is what the job contributes to the metadata of its callbacks.

    `fingerprint` and `request` are what a resubmission is compared with; `request` is None in records of the
    first release.

    `suppress_callbacks`: the job has no outbox events. `one_shot`: its caller reads the answer while it is
    generated, so a run that has `streamed` tokens is not repeated. `shared`: this attempt has been in one
    batch with other texts. `alone`: a worker was lost with this run, which joins no batch any more.

    `bucket` is where the job stores its files; None for a text, and in records of earlier releases.

    `enhancement` is None for a job whose prompt is used unchanged, `wanted` until the enhancement ends or is
    skipped, then `over`; `enhancement_result` is its result, used by every attempt of the run.
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
    token: str | None = field(repr=False)
    cancel_requested: bool
    fingerprint: str
    request: str | None
    callback_url: str | None
    callback_metadata: dict[str, Any]
    failures: dict[str, int]
    outcome: Outcome | None
    suppress_callbacks: bool = False
    one_shot: bool = False
    streamed: bool = False
    shared: bool = False
    alone: bool = False
    bucket: str | None = None
    enhancement: EnhancementState | None = None
    enhancement_result: dict[str, Any] | None = None
    version: int = RECORD_VERSION

    @property
    def finished(self) -> bool:
        """Whether this run has its terminal state."""
        return self.status in FINISHED

    @property
    def repeatable(self) -> bool:
        """Whether another attempt may follow: no reader has seen a part of this run's answer."""
        return not (self.one_shot and self.streamed)


@dataclass(frozen=True, slots=True)
class BrokerEntry:
    """One message as a list of the broker contains it: the key of the list, and the message as JSON."""

    list_name: str
    message: str


@dataclass(frozen=True, slots=True)
class Admission:
    """The result of a registration. `created` is true for exactly one caller of an id; `same` is false when
    the id belongs to a job that asks for different work. `position` is the job's place in its queue, 0 for
    the next to start; None when it is not queued. `allowances`: what is left of those that the job was
    charged to."""

    created: bool
    same: bool
    record: Record
    position: int | None
    allowances: tuple[Standing, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt of a job, leased to a worker until the lease expires or the fence grows.

    `token` is unique to the claim: no other attempt of any job has it, also not one that got the same run and
    fence because a failover of the server lost this claim. What belongs to this attempt alone, such as a file
    that is not committed yet, is named after it. `lease_deadline` is the end of the lease as it was claimed,
    in seconds of this host's monotonic clock, never later than on the server; `LeasedRun.lease_deadline`
    follows the renewals.
    """

    job: Job
    record: Record
    lease_deadline: float = field(default=0.0, compare=False)

    @property
    def job_id(self) -> str:
        return self.record.job_id

    @property
    def type(self) -> str:
        return self.record.type

    @property
    def user_id(self) -> str | None:
        return self.record.user_id

    @property
    def callback_metadata(self) -> dict[str, Any]:
        return self.record.callback_metadata

    @property
    def run(self) -> int:
        return self.record.run

    @property
    def fence(self) -> int:
        return self.record.fence

    @property
    def token(self) -> str:
        return self.record.token or ""


@dataclass(frozen=True, slots=True)
class Enhancement:
    """The enhancement of a queued job, leased under `token` until the lease expires and is taken over."""

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
    """Whether the caller of a job reads its answer while it is generated."""
    return isinstance(job, ChatJob) and job.stream


def record_version(job: Job) -> int:
    """The version of a job's record: the lowest whose releases handle the job's document."""
    return 1 if job.document_version == FIRST_VERSION else RECORD_VERSION


def awaits_enhancement(job: Job) -> bool:
    """Whether a language model enhances the prompt before the job is generated."""
    return isinstance(job, VideoJob) and job.enhance_prompt


class Verdict(StrEnum):
    """Whether an attempt goes on: yes, no because the caller cancelled, no because its lease is lost."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LOST = "lost"


DeliveryState = Literal["pending", "delivered", "dead"]


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """One callback of a job, or one change of a worker's registration. `sequence` grows over the whole life
    of the job.

    `kind` is `processing` or the terminal status, `attempt` the attempt that it reports. `deliveries` counts
    the tries to deliver it; `last_status` (HTTP) and `last_error` are the result of the last one.
    `leased_until`: until when nobody else delivers it.
    """

    event_id: str
    job_id: str
    run: int
    sequence: int
    kind: Literal["processing"] | OutcomeStatus | RegistrationKind
    attempt: int
    at: float
    queued_at: float
    claimed_at: float | None
    worker_id: str | None
    callback_url: str | None
    callback_metadata: dict[str, Any]
    outcome: Outcome | None
    state: DeliveryState
    due_at: float
    deliveries: int
    last_status: int | None = None
    last_error: str | None = None
    settled_at: float | None = None
    leased_until: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        """Whether this event reports the end of a run, or a registration: it must arrive."""
        return self.kind != "processing"

    @property
    def is_registration(self) -> bool:
        """Whether this event reports a worker and not a job."""
        return self.kind in REGISTRATION_KINDS

    @property
    def error(self) -> JobError | None:
        """Why the job failed, if it did."""
        return self.outcome.error if self.outcome else None


@dataclass(frozen=True, slots=True)
class ReadyJob:
    """A job whose oldest event is due, as the outbox announces it. `callback_url` is that event's, None for
    the default receiver."""

    job_id: str
    callback_url: str | None


@dataclass(frozen=True, slots=True)
class NextLease:
    """Asks the call that settles an event to lease the next one of its job: for so long, by this token."""

    lease_s: float
    token: str


def event_id(record: Record, sequence: int) -> str:
    """The id of an outbox event, which receivers use as idempotency key.

    It is equal over all deliveries of one event, and another one for a new job under the id of a deleted one,
    because `order` is another. `scripts/lib/outbox.lua` computes the same: SHA-1, because Redis scripts can
    compute it; nothing secret depends on it.
    """
    named = f"{record.job_id}\0{record.order}\0{record.run}\0{sequence}".encode()
    return "msg_" + hashlib.sha1(named, usedforsecurity=False).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One item of a job's live stream. Items are ordered by `id`; a reader resumes after one. `gap` stands
    for items that were trimmed before the reader got to them."""

    id: str
    kind: Literal["state", "progress", "preview", "token", "done", "gap"]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some records, newest first, and the cursor of the next page (None at the end)."""

    records: list[Record]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker and its last heartbeat. `state` is the one that the heartbeat reported, or `offline` when it
    is older than the presence time. `draining`: an operator asked the worker to take no more jobs.
    `broker_prefix`: prefix of the broker keys that it consumes; '' for a release whose keys had none."""

    id: str
    family: str
    queue: str
    host: str
    pid: int
    gpu: str | None
    state: Literal["starting", "failed", "idle", "busy", "draining", "offline"]
    models: tuple[str, ...]
    version: str
    started_at: float
    seen_at: float
    draining: bool = False
    broker_prefix: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def model_infos(self) -> dict[str, dict[str, Any]]:
        """What the worker reported of each of its models after loading it, by name. Whatever else it reported
        is left out; the description of a single model, without a name, counts as that of its family."""
        reported = self.detail.get("info")
        if not isinstance(reported, dict):
            return {}
        infos = {name: info for name, info in reported.items() if isinstance(info, dict)}
        return infos or ({self.family: reported} if reported else {})

    @property
    def metrics_counts(self) -> dict[str, int]:
        """How many documents about ended jobs it has `sent` to the receiver of metrics, and how many it has
        `dropped`; empty without a receiver."""
        counts = self.detail.get("metrics")
        if not isinstance(counts, dict):
            return {}
        return {name: value for name, value in counts.items() if isinstance(value, int)}

    @property
    def load_error(self) -> str | None:
        """Why the worker could not load its models; None when it could."""
        error = self.detail.get("error")
        return str(error) if error else None

    @property
    def retry_at(self) -> float | None:
        """When a worker without models loads them again, Unix seconds; None when it does not."""
        retry_at = self.detail.get("retry_at")
        return float(retry_at) if isinstance(retry_at, int | float) and math.isfinite(retry_at) else None
