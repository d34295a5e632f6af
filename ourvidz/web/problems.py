"""What a caller gets to see of an error: an RFC 9457 problem with the error's code."""

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
from ourvidz.errors import InternalError, InvalidParameters, NotFound, OurvidzError, PolicyViolation, by_code
from ourvidz.jobs.sanitize import shorten
from ourvidz.web import audit, openai_errors

MEDIA_TYPE = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
UNAVAILABLE_RETRY_S = 5.0
"""What `Retry-After` says of a 503 that names no time itself."""

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
    """The answer to a request that ended with `error`; `status` where the protocol wants another one."""
    status = status or error.http_status
    headers = _headers(error, status)
    if openai_errors.speaks(instance):
        return openai_errors.answer(error, status, headers)
    found = document(error, instance, status=status)
    return JSONResponse(found.model_dump(), status, headers, media_type=MEDIA_TYPE)


def _headers(error: OurvidzError, status: int) -> dict[str, str]:
    headers = {}
    wait_s = error.retry_after_s
    if wait_s is None and status == HTTPStatus.SERVICE_UNAVAILABLE:
        wait_s = UNAVAILABLE_RETRY_S
    if wait_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def document(error: OurvidzError, instance: str, *, status: int | None = None) -> Problem:
    """What a caller gets to see of `error`."""
    status = status or error.http_status
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        instance=instance,
        code=error.code,
        field=error.field,
        rule=error.rule,
        value=shorten(error.value),
        error=error.message,
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"content": content, "description": HTTPStatus(status).phrase} for status in statuses}


def declare(openapi: dict[str, Any]) -> dict[str, Any]:
    """Add the problem's schema to an OpenAPI document. Declared as a model of a response, it would be
    announced as plain JSON as well."""
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema(mode="serialization")
    return openapi


async def on_http_exception(request: Request, raised: Exception) -> JSONResponse:
    """What the framework refuses itself: unknown routes, wrong methods."""
    assert isinstance(raised, HTTPException)
    status = raised.status_code
    error: OurvidzError
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        error = NotFound(f"There is no route {request.method} {request.url.path}.")
    else:
        error = InvalidParameters(str(raised.detail))
    answer = problem(error, request.url.path, status=status)
    answer.headers.update(raised.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names the methods of the first route of this path only.
        answer.headers["Allow"] = ", ".join(_methods(request))
    audit.entry(request.scope).code = error.code
    return answer


async def on_invalid_request(request: Request, raised: Exception) -> JSONResponse:
    """A path, query or header parameter that is not what its route declares."""
    assert isinstance(raised, RequestValidationError)
    first = raised.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    error = InvalidParameters(
        f"{field}: {first['msg']}", field=field, rule=first["msg"], value=first.get("input")
    )
    audit.entry(request.scope).code = error.code
    return problem(error, request.url.path)


def _methods(request: Request) -> list[str]:
    routes = request.app.router.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


class LastResort:
    """Answers every error nobody answered: ours with their code, anything else as an `INTERNAL_ERROR` that
    says nothing of the inside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
            return
        except ClientDisconnect:
            return
        except OurvidzError as known:
            error = known
            if isinstance(known, PolicyViolation):
                audit.entry(scope).policy = known.audit
            if known.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.warning("request_failed", path=scope["path"], code=known.code, reason=known.message)
        except Exception:
            _log.exception("internal_error", path=scope["path"])
            if started:
                raise
            error = InternalError("The service failed; its operators have the details.")
        if not started:
            audit.entry(scope).code = error.code
            await problem(error, scope["path"])(scope, receive, send)
