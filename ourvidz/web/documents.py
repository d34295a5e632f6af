"""The documents the job routes answer with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ourvidz.ledger.record import Status


class Timestamps(BaseModel):
    """When things happened, ISO 8601 in UTC; `queued_at` and `started_at` are the current run's."""

    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Result(BaseModel):
    """What a completed job made: `assets` and `metadata` exactly as in its callback."""

    assets: list[dict[str, Any]]
    metadata: dict[str, Any]
    imageUrl: str | None
    videoUrl: str | None
    text: str | None


class FaultDocument(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool


class JobListed(BaseModel):
    """A job as lists show it. `progress` is 0 to 100, `run` counts submissions, `attempt` claims in one."""

    job_id: str
    status: Status
    progress: Annotated[float, Field(ge=0, le=100)]
    result: Result | None
    error: FaultDocument | None
    timestamps: Timestamps
    type: str
    queue: str
    user_id: str | None
    run: int
    attempt: int
    stage: str | None


class JobState(JobListed):
    """A job as it now stands. `queue_position` is 0 for the next to start, `eta_s` an estimate in seconds."""

    queue_position: int | None
    eta_s: float | None


class JobPage(BaseModel):
    """Some jobs, newest first; `cursor` asks for the next ones and is null at the end."""

    items: list[JobListed]
    cursor: str | None


class Accepted(BaseModel):
    """A job was queued. `seed` is the one it will run with, drawn or given."""

    job_id: str
    status: Literal["queued"] = "queued"
    queue: str
    position: int
    run: int
    seed: int | None


class Deleted(BaseModel):
    """A job's record and assets are gone."""

    job_id: str
    deleted: Literal[True] = True
