"""API keys and their scopes, and the protection of a shim that has no keys."""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, params
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.concurrency import run_in_threadpool

from ourvidz.errors import Forbidden, SettingsError, Unauthorized, WorkerUnavailable
from ourvidz.keys.caller import ANYONE, LOCAL, SCOPES, Caller, UserBinding
from ourvidz.keys.secret import PREFIX as KEY_PREFIX
from ourvidz.keys.tokens import PREFIX as TOKEN_PREFIX
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal
from ourvidz.web import audit
from ourvidz.web.hosts import is_exposed, is_loopback
from ourvidz.web.open_routes import OpenRoutes
from ourvidz.wiring import control

LISTS = "lists"
"""Scope of the Upstash routes only: migrated callers still send their Upstash token there."""
API_KEYS = "OURVIDZ_API_KEYS"
REQUIRE_KEYS = "OURVIDZ_REQUIRE_KEYS"
BROWSER = "browser"
"""Scope of tokens: the routes that a browser reads."""
SETTINGS_KEY = "settings:"
"""What the ids of the keys in the settings begin with; those of stored keys have no colon."""
TOKEN_PARAMETER = "token"
MIN_KEY_CHARS = 16
MIN_KEY_BITS = 48
"""Least entropy of a key where others than this machine can reach the shim."""


@dataclass(frozen=True, slots=True)
class Key:
    """One API key; `name` appears in the audit log."""

    name: str
    secret: bytes = field(repr=False)
    scopes: frozenset[str]

    @property
    def caller(self) -> Caller:
        """Who sends the key."""
        return Caller(self.name, f"{SETTINGS_KEY}{self.name}", self.scopes)


class Keyring:
    """The API keys of an installation. Without keys, every request that reaches the shim is authorized.

    `upstash_keys` are accepted too, but do not count as configured keys. `open_routes` need no key.
    `required`: stored keys are accepted alone, so that a shim without keys in its settings needs one too.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        *,
        upstash_keys: Iterable[Key] = (),
        open_routes: Iterable[str] = (),
        required: bool = False,
    ) -> None:
        self._keys = tuple(keys)
        self._all = (*self._keys, *upstash_keys)
        self._open_routes = OpenRoutes(open_routes)
        self._required = required

    @property
    def empty(self) -> bool:
        """Whether requests need no key: none is configured, Upstash keys aside, and none is required."""
        return not self._keys and not self._required

    def secret_for(self, scope: str) -> str | None:
        """The secret of the first configured key with this scope, or None."""
        return next((key.secret.decode() for key in self._keys if scope in key.scopes), None)

    def identify(self, request: Request) -> Caller | None:
        """Who sends a request: by the key in `X-API-Key` or `Authorization: Bearer`, or by the token there or
        in the query. None without a valid one.

        Every key of the settings is compared, in constant time. Raises `WorkerUnavailable` where the request
        has a stored key or a token and the Redis server cannot be reached.
        """
        offered = _header_credentials(request)
        match = None
        for key in self._all:
            for text in offered:
                # Headers are decoded as latin-1: encoding gives back the bytes that were sent.
                if hmac.compare_digest(key.secret, text.encode("latin-1")) and match is None:
                    match = key
        if match is not None:
            return match.caller
        callers = (self._stored(text) for text in _credentials(request))
        return next((caller for caller in callers if caller is not None), None)

    def authorize(
        self, request: Request, scopes: frozenset[str], own: frozenset[str] = frozenset()
    ) -> Caller:
        """The caller of a request, when its key has one of `scopes` or the route is open. A key that is bound
        to users may have one of `own` instead: the route shows it nothing of others.

        Raises `Unauthorized` without a valid key, `Forbidden` for a key without the scope.
        """
        caller = self.identify(request)
        if caller is not None and caller.scopes & (scopes | own if caller.bound else scopes):
            return caller
        if caller is None and self.empty and not has_stored_form(request):
            return LOCAL
        if self._open_routes.includes(request):
            return caller or ANYONE
        if caller is None:
            raise Unauthorized("This route needs a key: Authorization: Bearer KEY, or X-API-Key: KEY.")
        audit.entry(request.scope).set_caller(caller)
        raise Forbidden(f"This key lacks the scope {' or '.join(sorted(scopes & SCOPES))}.")

    def _issuer(self, key_id: str | None) -> Caller | None:
        """Who made a token, by the id of the key; None if that key is no longer valid."""
        if key_id is None:
            return LOCAL if self.empty else None
        if key_id.startswith(SETTINGS_KEY):
            return next((key.caller for key in self._keys if key.caller.key_id == key_id), None)
        stored = control.current().keys.find(key_id)
        return stored.caller if stored is not None and stored.state == "active" else None

    def _stored(self, text: str) -> Caller | None:
        if text.startswith(f"{KEY_PREFIX}_"):
            return control.current().keys.identify(text)
        grant = control.current().tokens.read(text) if text.startswith(TOKEN_PREFIX) else None
        issuer = self._issuer(grant.key_id) if grant is not None else None
        if grant is None or issuer is None:
            return None
        binding = UserBinding(grant.user_id) if grant.user_id else None
        name, scopes = f"token of {issuer.name}", frozenset({BROWSER})
        return Caller(name, issuer.key_id, scopes, issuer.rate_class, binding, grant.job_id)


def _header_credentials(request: Request) -> list[str]:
    """What a request offers as keys in its headers."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return [request.headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]


def _credentials(request: Request) -> list[str]:
    """What a request offers as keys and tokens. A key is no part of a URL: others write URLs into logs."""
    token = request.query_params.get(TOKEN_PARAMETER, "")
    return [*_header_credentials(request), *([token] if token.startswith(TOKEN_PREFIX) else [])]


def has_stored_form(request: Request) -> bool:
    """Whether a request offers what has the form of a stored key or of a token."""
    return any(text.startswith((f"{KEY_PREFIX}_", TOKEN_PREFIX)) for text in _credentials(request))


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
    return Keyring(
        keys,
        upstash_keys=upstash_keys,
        open_routes=settings.open_routes,
        required=settings.require_keys,
    )


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


def require_scopes(keyring: Keyring, *scopes: str, own: str | None = None) -> list[params.Depends]:
    """Router dependencies that authorize requests whose key has one of these scopes, or the scope `own` if it
    is bound to users."""
    check = Depends(_scope_check(keyring, frozenset(scopes), frozenset({own} if own else ())))
    if keyring.empty:
        return [check]
    # Only for the OpenAPI document: the check itself reads the headers once.
    return [
        check,
        Depends(HTTPBearer(auto_error=False)),
        Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),
    ]


def _scope_check(
    keyring: Keyring, scopes: frozenset[str], own: frozenset[str]
) -> Callable[[Request], Coroutine[Any, Any, None]]:
    async def check(request: Request) -> None:
        if has_stored_form(request):
            caller = await run_in_threadpool(keyring.authorize, request, scopes, own)
        else:
            caller = keyring.authorize(request, scopes, own)
        request.state.caller = caller
        audit.entry(request.scope).set_caller(caller)

    return check


def caller_of(request: Request) -> Caller:
    """The caller of an authorized request. A route that checks no scopes has none: everybody is anyone."""
    caller: Caller = getattr(request.state, "caller", ANYONE)
    return caller


def still_allowed(request: Request) -> Callable[[], bool] | None:
    """Whether the key or token of a request that goes on is still valid, as a question to ask again; None for
    one that stays valid as long as this process. While the Redis server cannot be reached it counts as valid:
    what the request reads comes from there."""
    if not has_stored_form(request):
        return None
    keyring: Keyring = request.app.state.keyring

    def ask() -> bool:
        try:
            return keyring.identify(request) is not None
        except WorkerUnavailable:
            return True

    return ask


def is_informed(request: Request) -> bool:
    """Whether a caller may know the hosts and models of the installation: with any key that is not bound to
    users, or where there are no keys, or where `OURVIDZ_PUBLIC_INFO` says so."""
    keyring: Keyring = request.app.state.keyring
    try:
        caller = keyring.identify(request)
    except WorkerUnavailable:
        return False
    if caller is None:
        return control.current().settings.public_info or (keyring.empty and not has_stored_form(request))
    return not caller.bound


REMEDY = f"set {API_KEYS}, or {REQUIRE_KEYS}=1 for keys of `ourvidz keys` alone"


def require_safe_binding(settings: Settings, hosts: Iterable[str] | None = None) -> None:
    """Raise `SettingsError` when a shim without keys would be reached from elsewhere: in production, under a
    public URL, or at another address than loopback.

    `hosts` are the addresses of sockets that are bound already; by default the setting's.
    """
    if not load_keyring(settings).empty:
        return
    for host in (settings.host,) if hosts is None else hosts:
        if not is_loopback(host):
            only = f"without {API_KEYS} the shim listens on loopback only, not on {host!r}"
            raise SettingsError(f"OURVIDZ_HOST: {only}: {REMEDY}", field="OURVIDZ_HOST")
    require_keys_where_public(settings)


def require_keys_where_public(settings: Settings) -> None:
    """Raise `SettingsError` for a shim without keys in production, or with a public URL beyond loopback."""
    if not load_keyring(settings).empty:
        return
    if settings.profile == "production":
        raise SettingsError(f"{API_KEYS}: the production profile needs keys: {REMEDY}", field=API_KEYS)
    public_host = urlsplit(settings.public_url).hostname if settings.public_url else None
    if public_host is not None and not is_loopback(public_host):
        reached = "others can reach the shim there, and it has no keys"
        raise SettingsError(f"OURVIDZ_PUBLIC_URL: {reached}: {REMEDY}", field="OURVIDZ_PUBLIC_URL")
