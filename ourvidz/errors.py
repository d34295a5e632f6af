"""Every way a job or a request can go wrong, in one tree.

Each branch is the party that must act. The class alone defines the code, the HTTP status, the value of
`retryable` on the wire and the number of attempts of a job.

    OurvidzError
    ├── CallerError
    │   ├── InvalidPrompt
    │   ├── InvalidParameters
    │   ├── PolicyViolation
    │   ├── ReferenceForbidden
    │   ├── JobTimeout
    │   ├── Cancelled
    │   ├── Unauthorized
    │   ├── Forbidden
    │   ├── NotFound
    │   ├── Conflict
    │   ├── PayloadTooLarge
    │   └── RateLimited
    ├── FallbackError
    │   ├── ReferenceFrameError
    │   └── I2IPipelineError
    ├── OperatorError
    │   ├── ModelLoadError
    │   ├── SettingsError
    │   └── HubError
    └── OurError
        ├── OutOfMemory
        ├── StorageError
        ├── WorkerLost
        ├── WorkerUnavailable
        ├── CapacityExceeded
        ├── ThumbnailGenerationError
        └── InternalError
            └── NewerRelease
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal


class OurvidzError(Exception):
    """A failure with a code from the contract.

    `field`, `rule` and `value` name what was wrong with an input: the caller's own path, the rule in
    words, and what was sent. `kind` is which of a code's cases it is, where a client distinguishes them.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    attempts: ClassVar[int] = 1
    """How often the failed thing is tried in all: the whole job, or with `scope` "step" only the step."""
    scope: ClassVar[Literal["job", "step"]] = "job"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        rule: str | None = None,
        value: Any = None,
        kind: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.rule = rule
        self.value = value
        self.kind = kind
        self.retry_after_s = retry_after_s


CONTEXT_EXCEEDED = "context_length_exceeded"
"""The kind of an `INVALID_PARAMETERS`: a conversation that a model cannot take in whole."""


class CallerError(OurvidzError):
    """The caller must change the request."""

    http_status = 422


class InvalidPrompt(CallerError):
    code = "INVALID_PROMPT"


class InvalidParameters(CallerError):
    code = "INVALID_PARAMETERS"


class PolicyViolation(CallerError):
    """`audit` (category, hash of the text) goes to the operator's log only, never to the client."""

    code = "POLICY_VIOLATION"
    audit: Mapping[str, str] | None = None


class ReferenceForbidden(CallerError):
    code = "REFERENCE_FORBIDDEN"


class JobTimeout(CallerError):
    code = "TIMEOUT_ERROR"
    http_status = 504


class Cancelled(CallerError):
    code = "CANCELLED"


class Unauthorized(CallerError):
    code = "UNAUTHORIZED"
    http_status = 401


class Forbidden(CallerError):
    code = "FORBIDDEN"
    http_status = 403


class NotFound(CallerError):
    code = "NOT_FOUND"
    http_status = 404


class Conflict(CallerError):
    code = "CONFLICT"
    http_status = 409


class PayloadTooLarge(CallerError):
    code = "PAYLOAD_TOO_LARGE"
    http_status = 413


class RateLimited(CallerError):
    """`standings`: what is left of the allowances that the request was held to, for the headers."""

    code = "RATE_LIMITED"
    standings: Sequence[Any] = ()
    http_status = 429


class FallbackError(OurvidzError):
    """An optional part of the job failed. It fails the job only if there is no fallback."""

    http_status = 422


class ReferenceFrameError(FallbackError):
    code = "REFERENCE_FRAME_ERROR"


class I2IPipelineError(FallbackError):
    code = "I2I_PIPELINE_ERROR"


class OperatorError(OurvidzError):
    """The operator must change the installation."""


class ModelLoadError(OperatorError):
    code = "MODEL_LOAD_ERROR"
    attempts = 2


class SettingsError(OperatorError):
    """A setting has a wrong value; the message is the one line an operator reads."""


class HubError(OperatorError):
    """A repository on the hub cannot be read, or a pulled checkpoint cannot be stored; the message is one
    line that ends with what to do."""


class OurError(OurvidzError):
    """A fault of the service: the same request may succeed later."""

    retryable = True


class OutOfMemory(OurError):
    code = "OOM_ERROR"
    attempts = 2


class StorageError(OurError):
    code = "STORAGE_ERROR"
    attempts = 3
    scope = "step"


class WorkerLost(OurError):
    code = "WORKER_LOST"
    http_status = 503
    attempts = 3


class WorkerUnavailable(OurError):
    code = "WORKER_UNAVAILABLE"
    http_status = 503


class CapacityExceeded(OurError):
    """No new job is accepted now: `kind` names the resource (`queue`, `memory`, `disk`)."""

    code = "CAPACITY_EXCEEDED"
    http_status = 503


class ThumbnailGenerationError(OurError):
    code = "THUMBNAIL_GENERATION_ERROR"


class InternalError(OurError):
    code = "INTERNAL_ERROR"


class NewerRelease(InternalError):
    """A newer release wrote this record or document, and must handle it: misread, the job could be lost.

    In an answer it is temporary: during an upgrade another process, or soon this one, is of that release.
    """

    code = "NEWER_RELEASE"
    http_status = 503


def by_code() -> dict[str, type[OurvidzError]]:
    """Return the error class of each wire code."""
    classes: dict[str, type[OurvidzError]] = {}
    pending = list(OurvidzError.__subclasses__())
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if "code" in vars(kind):
            classes[kind.code] = kind
    return classes
