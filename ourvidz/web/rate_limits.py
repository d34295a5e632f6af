"""Holds requests to the limits of their callers, and reports what is left in the headers of the response."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping
from typing import Any

from fastapi import Depends, Request, params
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ourvidz.errors import RateLimited, Unauthorized
from ourvidz.keys.caller import LOCAL
from ourvidz.limits.callers import CallerLimits, RouteClass
from ourvidz.limits.headers import rate_limit_fields
from ourvidz.web.auth import caller_of
from ourvidz.wiring import control

SUBMITTING = frozenset({"/jobs", "/rpush/{queue}", "/jobs/{id}/retry"})
"""Routes whose POST starts jobs."""
PROBES = frozenset({"/health", "/health/live", "/health/ready"})
"""Routes without limits: what a probe is refused is taken for dead, by supervisors, load balancers and the
caller's backend."""
STREAM_RETRY_S = 5.0


def limit(route_class: RouteClass) -> params.Depends:
    """A router dependency, after those that check the scopes. `route_class` is that of the router: of its
    routes, those that start no jobs are of the class `read`."""

    async def hold(request: Request) -> None:
        request.state.limits = limits = _limits(request, _class_of(request, route_class))
        await _take(limits)

    dependency: params.Depends = Depends(hold)
    return dependency


async def limit_address(request: Request) -> None:
    """A router dependency of routes without keys: limits the requests of an address."""
    if request.url.path not in PROBES:
        request.state.limits = limits = _limits(request, "read", anonymous=True)
        await _take(limits)


def limits_of(request: Request) -> CallerLimits:
    """The limits of the caller of a request."""
    limits: CallerLimits = request.state.limits
    return limits


class RateLimitMiddleware:
    """ASGI middleware, inside the one that turns errors into responses: adds the headers, counts requests
    with a wrong key or none by address, and ends what a request has reserved."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            limits = _state(scope).get("limits")
            if message["type"] == "http.response.start" and limits is not None:
                MutableHeaders(scope=message).update(rate_limit_fields(limits.standings))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Unauthorized:
            await _take(_limits(Request(scope), "wrong-key", anonymous=True))
            raise
        finally:
            subject = _state(scope).pop("stream_of", None)
            if subject is not None:
                open_streams.close(subject)


class OpenStreams:
    """The event streams of one process, by whose they are."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self.most_possible: int | None = None
        """Streams of one caller that leave connections for others; None without a limit of connections."""

    def open(self, request: Request) -> None:
        """Count a stream until the request ends. Raises `RateLimited` for one too many of a caller."""
        most, subject = control.current().settings.max_streams, limits_of(request).subject
        most = min(most, self.most_possible or most)
        if self._open[subject] >= most:
            raise RateLimited(
                f"{most} event streams are open.",
                rule=f"at most {most} open streams",
                retry_after_s=STREAM_RETRY_S,
            )
        self._open[subject] += 1
        _state(request.scope)["stream_of"] = subject

    def close(self, subject: str) -> None:
        """Count a stream no more."""
        self._open[subject] -= 1
        if self._open[subject] <= 0:
            del self._open[subject]


open_streams = OpenStreams()
"""Those of this process."""


def _state(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state


def _class_of(request: Request, route_class: RouteClass) -> RouteClass:
    if route_class == "submit":
        path = getattr(request.scope.get("route"), "path", None)
        return "submit" if request.method == "POST" and path in SUBMITTING else "read"
    if route_class == "sync":
        return "sync" if request.method == "POST" else "read"
    return route_class


def _limits(request: Request, route_class: RouteClass, *, anonymous: bool = False) -> CallerLimits:
    settings, caller = control.current().settings, caller_of(request)
    key = "local" if caller == LOCAL else caller.key_id
    return CallerLimits(
        settings,
        key=None if anonymous else key,
        address=request.client.host if request.client else "",
        route_class=route_class,
        factor=settings.rate_classes.get(caller.rate_class, 1.0),
    )


async def _take(limits: CallerLimits) -> None:
    """Charge a request. Raises `RateLimited`."""
    charge = limits.request_charge()
    if charge is not None:
        standing = await control.current().allowances.take(charge)
        limits.note([standing] if standing else [])
