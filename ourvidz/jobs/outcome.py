"""How a job ends: what it made, or why it did not."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ourvidz.errors import Cancelled, OurvidzError

Ending = Literal["completed", "failed", "cancelled"]


class Asset(BaseModel):
    """One thing a job made.

    `key` and `thumbnail_key` are storage paths `{bucket}/{user}/{job}/{file}`; text and json assets
    have none and carry their content in `metadata`.
    """

    model_config = ConfigDict(frozen=True)

    type: Literal["image", "video", "text", "json"]
    key: str | None = None
    thumbnail_key: str | None = None
    metadata: dict[str, Any] = {}


class JobError(BaseModel):
    """Why a job failed. `field` and `kind` are for callers that wait: it is their own request."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    retryable: bool
    field: str | None = None
    kind: str | None = None

    @classmethod
    def of(cls, error: OurvidzError) -> JobError:
        """The fault an error of the tree stands for."""
        return cls(
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            field=error.field,
            kind=error.kind,
        )

    def told(self) -> dict[str, Any]:
        """What callbacks, job states and event streams say of it."""
        return self.model_dump(include={"code", "message", "retryable"})


class Outcome(BaseModel):
    """The committed end of one run of a job. `metadata` holds only what the worker found out."""

    model_config = ConfigDict(frozen=True)

    status: Ending
    assets: tuple[Asset, ...] = ()
    metadata: dict[str, Any] = {}
    enhanced_prompt: str | None = None
    fault: JobError | None = None

    @classmethod
    def failure(cls, error: OurvidzError, **metadata: Any) -> Outcome:
        """The outcome of a job that ended with `error`; a cancelled one counts as its own ending."""
        ending: Ending = "cancelled" if isinstance(error, Cancelled) else "failed"
        return cls(status=ending, metadata=metadata, fault=JobError.of(error))
