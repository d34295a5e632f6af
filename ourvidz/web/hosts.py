"""Which hosts this machine is reached by, and the protection of a shim without keys from web pages."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ourvidz.errors import Forbidden
from ourvidz.settings import Settings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def is_exposed(settings: Settings) -> bool:
    """Whether others than this machine may reach the shim."""
    public_host = urlsplit(settings.public_url).hostname if settings.public_url else None
    hosts = filter(None, (settings.host, public_host))
    return settings.profile == "production" or not all(map(is_loopback, hosts))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class LocalOnlyMiddleware:
    """Checks `Host` and `Origin` of requests to a shim without keys; raises `Forbidden`.

    A page of another site can then neither point its own name here (DNS rebinding) nor post from its origin.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._host_names = set(LOOPBACK_NAMES)
        if settings.public_url:
            self._host_names.add((urlsplit(settings.public_url).hostname or "").lower())
        if is_loopback(settings.host):
            self._host_names.add(settings.host.lower())
        self._allowed_origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if host_name(headers.get("host", "")) not in self._host_names:
                raise Forbidden("This host name is not served here.", field="Host", rule="a local name")
            origin = headers.get("origin")
            if origin is not None and origin not in self._allowed_origins and not self._is_own(origin):
                raise Forbidden("Pages of other sites may not call this service.", field="Origin")
        await self._app(scope, receive, send)

    def _is_own(self, origin: str) -> bool:
        return host_name(origin.partition("://")[2]) in self._host_names


def host_name(netloc: str) -> str:
    """The lower-case name in `name`, `name:port`, `[address]` or `[address]:port`."""
    bracket = netloc.find("]")
    return (netloc[: bracket + 1] if bracket > 0 else netloc.partition(":")[0]).lower()
