"""API keys and their scopes, and the protection of a shim that has no keys."""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, params
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ourvidz.errors import Forbidden, SettingsError, Unauthorized
from ourvidz.keys.caller import ANYONE, LOCAL, Caller
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal
from ourvidz.web import audit

SCOPES = frozenset({"jobs", "chat", "admin", "read"})
"""`read`: what autoscalers read; it changes nothing and shows no job."""
LISTS = "lists"
"""Scope of the Upstash routes only: migrated callers still send their Upstash token there."""
API_KEYS = "OURVIDZ_API_KEYS"
MIN_KEY_CHARS = 16
MIN_KEY_BITS = 48
"""Least entropy of a key where others than this machine can reach the shim."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Key:
    """One API key; `name` appears in the audit log."""

    name: str
    secret: bytes = field(repr=False)
    scopes: frozenset[str]

    @property
    def caller(self) -> Caller:
        """Who sends the key."""
        return Caller(self.name, key_id=self.name, scopes=self.scopes)


class Keyring:
    """The API keys of an installation. Without keys, every request that reaches the shim is authorized.

    `upstash_keys` are accepted too, but do not count as configured keys. `open_routes` need no key.
    """

    def __init__(
        self, keys: Iterable[Key], *, upstash_keys: Iterable[Key] = (), open_routes: Iterable[str] = ()
    ) -> None:
        self._keys = tuple(keys)
        self._all = (*self._keys, *upstash_keys)
        self._open_routes = frozenset("/" + route.strip("/") for route in open_routes)

    @property
    def empty(self) -> bool:
        """Whether no key is configured, Upstash keys aside."""
        return not self._keys

    def secret_for(self, scope: str) -> str | None:
        """The secret of the first configured key with this scope, or None."""
        return next((key.secret.decode() for key in self._keys if scope in key.scopes), None)

    def identify(self, headers: Headers) -> Key | None:
        """The key that a request carries in `X-API-Key` or `Authorization: Bearer`, or None.

        Every key is compared, in constant time.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        match = None
        for key in self._all:
            for secret in offered:
                # Headers are decoded as latin-1: encoding gives back the bytes that were sent.
                if hmac.compare_digest(key.secret, secret.encode("latin-1")) and match is None:
                    match = key
        return match

    def authorize(self, request: Request, scopes: frozenset[str]) -> Caller:
        """The caller of a request, when its key has one of `scopes` or the route is open.

        Raises `Unauthorized` without a valid key, `Forbidden` for a key without the scope.
        """
        if self.empty:
            return LOCAL
        key = self.identify(request.headers)
        if key is not None and key.scopes & scopes:
            return key.caller
        if _route_path(request) in self._open_routes or request.url.path in self._open_routes:
            return key.caller if key else ANYONE
        if key is None:
            raise Unauthorized("This route needs a key: Authorization: Bearer KEY, or X-API-Key: KEY.")
        audit.entry(request.scope).caller = key.name
        raise Forbidden(f"This key lacks the scope {' or '.join(sorted(scopes & SCOPES))}.")


def _route_path(request: Request) -> str | None:
    return getattr(request.scope.get("route"), "path", None)


def load_keyring(settings: Settings) -> Keyring:
    """The keys in the settings. Raises `SettingsError` for one that is not `name:key:scope+scope`, and where
    others than this machine can reach the shim for one that can be guessed; no message has a key."""
    guarded = is_exposed(settings)
    keys = [
        _parse_key(reveal(entry), number, guarded=guarded)
        for number, entry in enumerate(settings.api_keys, start=1)
    ]
    worker_keys = {
        "WAN_WORKER_API_KEY": settings.wan_worker_api_key,
        "CHAT_WORKER_API_KEY": settings.chat_worker_api_key,
        "SDXL_WORKER_API_KEY": settings.sdxl_worker_api_key,
    }
    scopes = frozenset({"jobs", "chat"})
    for variable, secret in worker_keys.items():
        if secret:
            text = reveal(secret)
            if guarded:
                _refuse_guessable(text, variable, "the key")
            name = variable.removesuffix("_API_KEY").replace("_", "-").lower()
            keys.append(Key(name, text.encode(), scopes))
    token = settings.upstash_token
    upstash_keys = [Key("upstash", reveal(token).encode(), frozenset({LISTS}))] if token else []
    return Keyring(keys, upstash_keys=upstash_keys, open_routes=settings.open_routes)


def is_exposed(settings: Settings) -> bool:
    """Whether others than this machine may reach the shim."""
    public_host = urlsplit(settings.public_url).hostname if settings.public_url else None
    hosts = filter(None, (settings.host, public_host))
    return settings.profile == "production" or not all(map(_is_loopback, hosts))


def _refuse_guessable(secret: str, variable: str, what: str) -> None:
    """Raise `SettingsError` for a key that is short or repeats itself. The entropy of its characters is an
    upper bound: a key of words passes that a dictionary has."""
    counts = [secret.count(char) for char in set(secret)]
    bits = -sum(count * math.log2(count / len(secret)) for count in counts)
    if len(secret) < MIN_KEY_CHARS or bits < MIN_KEY_BITS:
        raise SettingsError(
            f"{variable}: {what} can be guessed: it needs {MIN_KEY_CHARS} random characters or more "
            "(openssl rand -hex 24)",
            field=variable,
        )


def _parse_key(entry: str, number: int, *, guarded: bool) -> Key:
    """The key of one entry. An entry that is wrong is named by its number: its parts may be the key."""
    name, _, rest = entry.partition(":")
    secret, _, scope_list = rest.rpartition(":")
    scopes = frozenset(scope_list.split("+"))
    if not (name and secret and scopes <= SCOPES):
        raise SettingsError(
            f"{API_KEYS}: entry {number} must be name:key:scope+scope with scopes of "
            f"{', '.join(sorted(SCOPES))}",
            field=API_KEYS,
        )
    if guarded:
        _refuse_guessable(secret, API_KEYS, f"the key of entry {number}")
    return Key(name, secret.encode(), scopes)


def require_scopes(keyring: Keyring, *scopes: str) -> list[params.Depends]:
    """Router dependencies that authorize requests whose key has one of these scopes."""
    check = Depends(_scope_check(keyring, frozenset(scopes)))
    if keyring.empty:
        return [check]
    # Only for the OpenAPI document: the check itself reads the headers once.
    return [
        check,
        Depends(HTTPBearer(auto_error=False)),
        Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),
    ]


def _scope_check(keyring: Keyring, scopes: frozenset[str]) -> Callable[[Request], Coroutine[Any, Any, None]]:
    async def check(request: Request) -> None:
        caller = keyring.authorize(request, scopes)
        request.state.caller = caller
        audit.entry(request.scope).caller = caller.name

    return check


def caller_of(request: Request) -> Caller:
    """The caller of an authorized request. A route that checks no scopes has none: everybody is anyone."""
    caller: Caller = getattr(request.state, "caller", ANYONE)
    return caller


def require_safe_binding(settings: Settings, hosts: Iterable[str] | None = None) -> None:
    """Raise `SettingsError` when a shim without keys would listen beyond loopback.

    `hosts` are the addresses of sockets that are bound already; by default the setting's.
    """
    if not load_keyring(settings).empty:
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


class LocalOnlyMiddleware:
    """Checks `Host` and `Origin` of requests to a shim without keys; raises `Forbidden`.

    A page of another site can then neither point its own name here (DNS rebinding) nor post from its origin.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._host_names = set(LOOPBACK_NAMES)
        if settings.public_url:
            self._host_names.add((urlsplit(settings.public_url).hostname or "").lower())
        if _is_loopback(settings.host):
            self._host_names.add(settings.host.lower())
        self._allowed_origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if _host_name(headers.get("host", "")) not in self._host_names:
                raise Forbidden("This host name is not served here.", field="Host", rule="a local name")
            origin = headers.get("origin")
            if origin is not None and origin not in self._allowed_origins and not self._is_own(origin):
                raise Forbidden("Pages of other sites may not call this service.", field="Origin")
        await self._app(scope, receive, send)

    def _is_own(self, origin: str) -> bool:
        return _host_name(origin.partition("://")[2]) in self._host_names


def _host_name(netloc: str) -> str:
    """The lower-case name in `name`, `name:port`, `[address]` or `[address]:port`."""
    bracket = netloc.find("]")
    return (netloc[: bracket + 1] if bracket > 0 else netloc.partition(":")[0]).lower()
