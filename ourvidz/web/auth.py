"""Who may do what: keys and their scopes, and what protects a shim that has no keys."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, params
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ourvidz.errors import Forbidden, SettingsError, Unauthorized
from ourvidz.settings import Settings
from ourvidz.web import audit

SCOPES = frozenset({"jobs", "chat", "admin"})
LISTS = "lists"
"""The scope of the Upstash forms alone: callers there still send their Upstash token."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Key:
    """One API key. `name` is what the audit log shows."""

    name: str
    secret: bytes = field(repr=False)
    scopes: frozenset[str]


class Keyring:
    """Every key of this installation. Without any, everyone who can reach the shim may do everything."""

    def __init__(
        self, keys: Iterable[Key], *, guests: Iterable[Key] = (), open_routes: Iterable[str] = ()
    ) -> None:
        self._keys = tuple(keys)
        self._all = (*self._keys, *guests)
        self._open = frozenset("/" + route.strip("/") for route in open_routes)

    @property
    def empty(self) -> bool:
        """Whether no key is configured; guests do not count."""
        return not self._keys

    def secret_for(self, scope: str) -> str | None:
        """The first configured key that has a scope."""
        return next((key.secret.decode() for key in self._keys if scope in key.scopes), None)

    def identify(self, headers: Headers) -> Key | None:
        """The key a request carries. Every key is compared, in constant time."""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        offered = [headers.get("x-api-key", ""), bearer.strip() if kind.lower() == "bearer" else ""]
        found = None
        for key in self._all:
            for secret in offered:
                # Headers are decoded as latin-1: encoding gives back the bytes that were sent.
                if hmac.compare_digest(key.secret, secret.encode("latin-1")) and found is None:
                    found = key
        return found

    def admit(self, request: Request, scopes: frozenset[str]) -> str:
        """The name of whoever may make this request. `Unauthorized` or `Forbidden`."""
        if self.empty:
            return "local"
        key = self.identify(request.headers)
        if key is not None and key.scopes & scopes:
            return key.name
        if _route(request) in self._open or request.url.path in self._open:
            return key.name if key else "anyone"
        if key is None:
            raise Unauthorized("This route needs a key: Authorization: Bearer KEY, or X-API-Key: KEY.")
        audit.entry(request.scope).who = key.name
        raise Forbidden(f"This key lacks the scope {' or '.join(sorted(scopes & SCOPES))}.")


def _route(request: Request) -> str | None:
    return getattr(request.scope.get("route"), "path", None)


def keyring(settings: Settings) -> Keyring:
    """The keys in the settings. `SettingsError` for one that is not `name:key:scope+scope`."""
    keys = [_key(entry) for entry in settings.api_keys]
    worker_keys = {
        "wan-worker": settings.wan_worker_api_key,
        "chat-worker": settings.chat_worker_api_key,
        "sdxl-worker": settings.sdxl_worker_api_key,
    }
    scopes = frozenset({"jobs", "chat"})
    keys += [Key(name, secret.encode(), scopes) for name, secret in worker_keys.items() if secret]
    token = settings.upstash_token
    guests = [Key("upstash", token.encode(), frozenset({LISTS}))] if token else []
    return Keyring(keys, guests=guests, open_routes=settings.open_routes)


def _key(entry: str) -> Key:
    name, _, rest = entry.partition(":")
    secret, _, words = rest.rpartition(":")
    scopes = frozenset(words.split("+"))
    if not (name and secret and scopes <= SCOPES):
        raise SettingsError(
            f"OURVIDZ_API_KEYS: the key {name!r} must be name:key:scope+scope with scopes of "
            f"{', '.join(sorted(SCOPES))}",
            field="OURVIDZ_API_KEYS",
        )
    return Key(name, secret.encode(), scopes)


def guard(ring: Keyring, *scopes: str) -> list[params.Depends]:
    """The dependencies of routes that need one of these scopes."""
    check = Depends(_check(ring, frozenset(scopes)))
    if ring.empty:
        return [check]
    # Only for the OpenAPI document: the check itself reads the headers once.
    return [
        check,
        Depends(HTTPBearer(auto_error=False)),
        Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),
    ]


def _check(ring: Keyring, scopes: frozenset[str]) -> Callable[[Request], Coroutine[Any, Any, None]]:
    async def check(request: Request) -> None:
        audit.entry(request.scope).who = ring.admit(request, scopes)

    return check


def require_safe_binding(settings: Settings, hosts: Iterable[str] | None = None) -> None:
    """Refuse to listen beyond this machine without keys. `hosts` are the addresses of sockets that are
    already bound; else the setting's."""
    if not keyring(settings).empty:
        return
    for host in (settings.host,) if hosts is None else hosts:
        if not _is_loopback(host):
            raise SettingsError(
                f"OURVIDZ_HOST: without OURVIDZ_API_KEYS the shim listens on loopback only, not on {host!r}",
                field="OURVIDZ_HOST",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class LocalOnly:
    """Protects a shim without keys from web pages: a page of another site can neither make its own name
    point here (DNS rebinding) nor post from its origin."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._names = set(LOOPBACK_NAMES)
        if settings.public_url:
            self._names.add((urlsplit(settings.public_url).hostname or "").lower())
        if _is_loopback(settings.host):
            self._names.add(settings.host.lower())
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if _name(headers.get("host", "")) not in self._names:
                raise Forbidden("This host name is not served here.", field="Host", rule="a local name")
            origin = headers.get("origin")
            if origin is not None and origin not in self._origins and not self._own(origin):
                raise Forbidden("Pages of other sites may not call this service.", field="Origin")
        await self._app(scope, receive, send)

    def _own(self, origin: str) -> bool:
        return _name(origin.partition("://")[2]) in self._names


def _name(host: str) -> str:
    """The name in `name`, `name:port`, `[address]` or `[address]:port`."""
    bracket = host.find("]")
    return (host[: bracket + 1] if bracket > 0 else host.partition(":")[0]).lower()
