"""Response models of the job routes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ourvidz.records.record import DeliveryState, Status


class Timestamps(BaseModel):
    """Times in ISO 8601, UTC; `queued_at` and `started_at` are the current run's."""

    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Result(BaseModel):
    """Output of a completed job: `assets` and `metadata` exactly as in its callback. The URLs are
    those of the first asset of each kind; signed ones end."""

    assets: list[dict[str, Any]]
    metadata: dict[str, Any]
    imageUrl: str | None
    videoUrl: str | None
    thumbnailUrl: str | None
    text: str | None


class JobErrorDocument(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool


class JobSummary(BaseModel):
    """A job in a list. `progress` is 0 to 100, `run` counts submissions, `attempt` the claims of one run."""

    job_id: str
    status: Status
    progress: Annotated[float, Field(ge=0, le=100)]
    result: Result | None
    error: JobErrorDocument | None
    timestamps: Timestamps
    type: str
    queue: str
    user_id: str | None
    run: int
    attempt: int
    stage: str | None


class JobState(JobSummary):
    """Current state of a job. `queue_position` is 0 for the next to start, `eta_s` an estimate in seconds."""

    queue_position: int | None
    eta_s: float | None


class JobPage(BaseModel):
    """One page of jobs, newest first; `cursor` requests the next page and is null on the last."""

    items: list[JobSummary]
    cursor: str | None


class Accepted(BaseModel):
    """A queued job. `seed` is the one it runs with: the payload's, else a drawn one."""

    job_id: str
    status: Literal["queued"] = "queued"
    queue: str
    position: int
    run: int
    seed: int | None


class CallbackState(BaseModel):
    """Whether the receiver has accepted the callback of a job's end. `state` is null if none is kept: the job
    has not ended, it has no callbacks, or its callback was delivered more than a day ago."""

    job_id: str
    event_id: str | None = None
    state: DeliveryState | None = None
    deliveries: int = 0
    last_status: int | None = None
    last_error: str | None = None
    settled_at: datetime | None = None


class Deleted(BaseModel):
    """A job whose record and assets were deleted."""

    job_id: str
    deleted: Literal[True] = True
