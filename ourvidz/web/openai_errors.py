"""Errors as the OpenAI API has them, on the routes that speak it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel
from starlette.responses import JSONResponse

from ourvidz.errors import CONTEXT_EXCEEDED, OurvidzError

PREFIX = "/v1/"
_CODES = {
    "UNAUTHORIZED": "invalid_api_key",
    "FORBIDDEN": "insufficient_permissions",
    "INVALID_PARAMETERS": "invalid_value",
    "INVALID_PROMPT": "invalid_value",
    "POLICY_VIOLATION": "content_policy_violation",
    "RATE_LIMITED": "rate_limit_exceeded",
}
"""What clients of that API know our codes as; the others are told in lower case."""
MODEL_NOT_FOUND = "model_not_found"


class ErrorObject(BaseModel):
    """What went wrong. `param` is the caller's own path."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(BaseModel):
    """The answer to a request that failed."""

    error: ErrorObject


def speaks(path: str) -> bool:
    """Whether a route's errors have this form."""
    return path.startswith(PREFIX)


def document(error: OurvidzError, status: int | None = None) -> ErrorDocument:
    """One of our errors in that form."""
    status = _status(status or error.http_status)
    code = _CODES.get(error.code, error.code.lower())
    if error.code == "NOT_FOUND" and error.field == "model":
        code = MODEL_NOT_FOUND
    if error.kind == CONTEXT_EXCEEDED:
        code = CONTEXT_EXCEEDED
    found = ErrorObject(message=error.message, type=_type(status), param=error.field, code=code)
    return ErrorDocument(error=found)


def answer(error: OurvidzError, status: int, headers: Mapping[str, str]) -> JSONResponse:
    """The response to a request that ended with `error`."""
    # Their clients repeat a request after any 5xx unless they are told not to.
    final = status >= HTTPStatus.INTERNAL_SERVER_ERROR and not error.retryable
    told = {**headers, **({"X-Should-Retry": "false"} if final else {})}
    return JSONResponse(document(error, status).model_dump(), _status(status), headers=told)


def _status(status: int) -> int:
    """That API has no 422: a request it cannot use is a 400."""
    return HTTPStatus.BAD_REQUEST if status == HTTPStatus.UNPROCESSABLE_ENTITY else status


def _type(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else "invalid_request_error"
