"""Supabase service keys: which header carries one, and which keys cannot be one.

A legacy key is a JWT and is sent as a bearer token. A secret key (`sb_secret_…`) is an opaque string:
gateways answer a bearer token of that form with 401, so it is sent as `apikey` alone.
https://supabase.com/docs/guides/getting-started/api-keys
"""

from __future__ import annotations

import base64
import json
import re

_JWT = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_API_KEY_PREFIX = "sb_"
_PUBLISHABLE_PREFIX = "sb_publishable_"
_PUBLIC_ROLES = frozenset({"anon", "authenticated"})


def key_headers(key: str) -> dict[str, str]:
    """The headers that authenticate a request with `key`, the one that proves it first.

    A JWT is also sent as `apikey`, which the gateway of a self-hosted project asks for. Any other key that
    does not begin with `sb_` is the bearer token of a receiver of the operator's own.
    """
    if key.startswith(_API_KEY_PREFIX):
        return {"apikey": key}
    if _JWT.fullmatch(key):
        return {"Authorization": f"Bearer {key}", "apikey": key}
    return {"Authorization": f"Bearer {key}"}


def key_refusal(key: str) -> str | None:
    """Why `key` cannot be a service key, or None. The reason does not contain the key."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        return "has characters that no header can carry: copy it again"
    if key.startswith(_PUBLISHABLE_PREFIX):
        return "is a publishable key; use a secret key (sb_secret_…)"
    if (role := _jwt_role(key)) in _PUBLIC_ROLES:
        return f"is the key of the role {role}; use the service_role key or a secret key (sb_secret_…)"
    return None


def _jwt_role(key: str) -> str | None:
    """The `role` claim of a JWT, not verified; None for everything else."""
    if not _JWT.fullmatch(key):
        return None
    part = key.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        return None
    role = claims.get("role") if isinstance(claims, dict) else None
    return role if isinstance(role, str) else None
