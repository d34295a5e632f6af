"""Error responses: RFC 9457 problem documents with an error code."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ourvidz import log
from ourvidz.errors import (
    InternalError,
    InvalidParameters,
    NotFound,
    OurvidzError,
    PolicyViolation,
    RateLimited,
    by_code,
)
from ourvidz.jobs.sanitize import summarize
from ourvidz.limits.headers import rate_limit_fields
from ourvidz.web import audit, openai_errors

MEDIA_TYPE = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
UNAVAILABLE_RETRY_S = 5.0
"""`Retry-After` of a 503 whose error names no time."""

_log = log.get(__name__)


class Problem(BaseModel):
    """An RFC 9457 problem. `field`, `rule` and `value` name a wrong input; `success` and `error` are for
    older clients."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: Literal[tuple(sorted(by_code()))]  # type: ignore[valid-type]
    field: str | None = None
    rule: str | None = None
    value: Any = None
    success: Literal[False] = False
    error: str


def problem(error: OurvidzError, instance: str, *, status: int | None = None) -> JSONResponse:
    """The response to a request for the path `instance` that raised `error`.

    `status` replaces the error's own HTTP status. OpenAI routes get that API's error document instead.
    """
    status = status or error.http_status
    headers = _headers(error, status)
    if openai_errors.applies_to(instance):
        return openai_errors.response(error, status, headers)
    body = document(error, instance, status=status)
    return JSONResponse(body.model_dump(), status, headers, media_type=MEDIA_TYPE)


def _headers(error: OurvidzError, status: int) -> dict[str, str]:
    headers = {}
    retry_after_s = error.retry_after_s
    if retry_after_s is None and status == HTTPStatus.SERVICE_UNAVAILABLE:
        retry_after_s = UNAVAILABLE_RETRY_S
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, RateLimited):
        headers.update(rate_limit_fields(error.standings))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def document(error: OurvidzError, instance: str, *, status: int | None = None) -> Problem:
    """The problem document of `error`; arguments as in `problem`."""
    status = status or error.http_status
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        instance=instance,
        code=error.code,
        field=error.field,
        rule=error.rule,
        value=summarize(error.value),
        error=error.message,
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route that may return problems with these statuses. A route that checks
    keys also limits its callers."""
    if {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} <= set(statuses):
        statuses = (*statuses, HTTPStatus.TOO_MANY_REQUESTS)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"content": content, "description": HTTPStatus(status).phrase} for status in statuses}


def add_schema(openapi: dict[str, Any]) -> dict[str, Any]:
    """Add the schema of problems to an OpenAPI document, and return the document.

    As the `model` of a response it would be declared as `application/json` too.
    """
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema(mode="serialization")
    return openapi


async def on_http_exception(request: Request, exception: Exception) -> JSONResponse:
    """Exception handler for errors that the framework raises itself: unknown routes, wrong methods."""
    assert isinstance(exception, HTTPException)
    status = exception.status_code
    if status == HTTPStatus.BAD_REQUEST:
        # The framework's own status of a body that is not UTF-8; any other body that is refused gets a 422.
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    error: OurvidzError
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        error = NotFound(f"There is no route {request.method} {request.url.path}.")
    else:
        error = InvalidParameters(str(exception.detail))
    response = problem(error, request.url.path, status=status)
    response.headers.update(exception.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names the methods of the first route of this path only.
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    audit.entry(request.scope).code = error.code
    return response


async def on_invalid_request(request: Request, exception: Exception) -> JSONResponse:
    """Exception handler for path, query and header parameters that do not match their declaration."""
    assert isinstance(exception, RequestValidationError)
    first = exception.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    error = InvalidParameters(
        f"{field}: {first['msg']}", field=field, rule=first["msg"], value=first.get("input")
    )
    audit.entry(request.scope).code = error.code
    return problem(error, request.url.path)


def _allowed_methods(request: Request) -> list[str]:
    routes = request.app.router.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


class ErrorMiddleware:
    """ASGI middleware that turns exceptions into problem documents.

    An `OurvidzError` keeps its code; anything else is logged and becomes an `INTERNAL_ERROR` without details.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_start)
            return
        except ClientDisconnect:
            return
        except OurvidzError as raised:
            error = raised
            if isinstance(raised, PolicyViolation):
                audit.entry(scope).policy = raised.audit
            if raised.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.warning("request_failed", path=scope["path"], code=raised.code, reason=raised.message)
        except Exception:
            _log.exception("internal_error", path=scope["path"])
            if started:
                raise
            error = InternalError("The service failed; its operators have the details.")
        if not started:
            audit.entry(scope).code = error.code
            await problem(error, scope["path"])(scope, receive, send)
