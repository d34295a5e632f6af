"""How a run of a job ended: the assets it stored, or the error it failed with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ourvidz.errors import Cancelled, OurvidzError

OutcomeStatus = Literal["completed", "failed", "cancelled"]


class Asset(BaseModel):
    """One result of a job.

    `key` and `thumbnail_key` are storage paths `{bucket}/{user_id}/{job_id}/{file}`. Text and JSON assets are
    not stored as files: they have no key and carry their content in `metadata`.
    """

    model_config = ConfigDict(frozen=True)

    type: Literal["image", "video", "text", "json"]
    key: str | None = None
    thumbnail_key: str | None = None
    metadata: dict[str, Any] = {}


class JobError(BaseModel):
    """The error that ended a job, as the ledger stores it.

    `field` (the path of the invalid value in the request) and `kind` are shown only to the caller of a
    synchronous route; `to_public` leaves them out.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    retryable: bool
    field: str | None = None
    kind: str | None = None

    @classmethod
    def of(cls, error: OurvidzError) -> JobError:
        """Convert an exception of the error tree."""
        return cls(
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            field=error.field,
            kind=error.kind,
        )

    def to_public(self) -> dict[str, Any]:
        """`code`, `message` and `retryable`: the form in callbacks, job documents and event streams."""
        return self.model_dump(include={"code", "message", "retryable"})


class Outcome(BaseModel):
    """The committed end of one run of a job.

    `metadata` holds what the worker measured and decided; what follows from the job itself is added from
    `callback_metadata` when a callback is built. `error` is set unless the job completed. Its JSON key is
    `fault`: records in Redis carry that name.
    """

    # Without a cache of values: keys of files and seeds do not come again, and it keeps 16,384 of them in
    # every process.
    model_config = ConfigDict(
        frozen=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        cache_strings="keys",
    )

    status: OutcomeStatus
    assets: tuple[Asset, ...] = ()
    metadata: dict[str, Any] = {}
    enhanced_prompt: str | None = None
    error: JobError | None = Field(default=None, alias="fault")

    @classmethod
    def failure(cls, error: OurvidzError, **metadata: Any) -> Outcome:
        """The outcome of a job that ended with `error`: `cancelled` for `Cancelled`, else `failed`."""
        status: OutcomeStatus = "cancelled" if isinstance(error, Cancelled) else "failed"
        return cls(status=status, metadata=metadata, error=JobError.of(error))

    @property
    def stored_bytes(self) -> int:
        """The size of the files of the assets, thumbnails not counted."""
        sizes = (asset.metadata.get("file_size_bytes") for asset in self.assets)
        return sum(size for size in sizes if isinstance(size, int))
