"""Error responses of the OpenAI routes, in the format of the OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel
from starlette.responses import JSONResponse

from ourvidz.errors import CONTEXT_EXCEEDED, OurvidzError

PATH_PREFIX = "/v1/"
_CODES = {
    "UNAUTHORIZED": "invalid_api_key",
    "FORBIDDEN": "insufficient_permissions",
    "INVALID_PARAMETERS": "invalid_value",
    "INVALID_PROMPT": "invalid_value",
    "POLICY_VIOLATION": "content_policy_violation",
    "RATE_LIMITED": "rate_limit_exceeded",
}
"""OpenAI error codes by our own codes; other codes are sent in lower case."""
MODEL_NOT_FOUND = "model_not_found"


class ErrorObject(BaseModel):
    """The error object of the OpenAI API; `param` is the path of the invalid field in the request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(BaseModel):
    """The response body of a failed request."""

    error: ErrorObject


def applies_to(path: str) -> bool:
    """Whether the route at `path` is one of the OpenAI routes."""
    return path.startswith(PATH_PREFIX)


def document(error: OurvidzError, status: int | None = None) -> ErrorDocument:
    """The error document of `error`; `status` replaces the error's own HTTP status."""
    status = _openai_status(status or error.http_status)
    code = _CODES.get(error.code, error.code.lower())
    if error.code == "NOT_FOUND" and error.field == "model":
        code = MODEL_NOT_FOUND
    if error.kind == CONTEXT_EXCEEDED:
        code = CONTEXT_EXCEEDED
    return ErrorDocument(
        error=ErrorObject(message=error.message, type=_error_type(status), param=error.field, code=code)
    )


def response(error: OurvidzError, status: int, headers: Mapping[str, str]) -> JSONResponse:
    """The response to a request that raised `error`; permanent ones get `X-Should-Retry: false`."""
    # OpenAI clients repeat a request after any 5xx unless this header forbids it.
    final = status >= HTTPStatus.INTERNAL_SERVER_ERROR and not error.retryable
    all_headers = {**headers, **({"X-Should-Retry": "false"} if final else {})}
    return JSONResponse(document(error, status).model_dump(), _openai_status(status), headers=all_headers)


def _openai_status(status: int) -> int:
    """The HTTP status that the OpenAI API uses for `status`: 400 instead of 422, otherwise the same."""
    return HTTPStatus.BAD_REQUEST if status == HTTPStatus.UNPROCESSABLE_ENTITY else status


def _error_type(status: int) -> str:
    """The `type` field of an error with this HTTP status."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else "invalid_request_error"
