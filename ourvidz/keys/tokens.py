"""Short-lived tokens for browsers: one job or one user, to read events and files.

A browser cannot send a header with an EventSource or an image. A token is signed, so nothing is stored of it;
the secret is the installation's, and lies in its Redis.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from ourvidz.ledger.connection import Connection

PREFIX = "ovt_"
MAX_LIFETIME_S = 3600
DEFAULT_LIFETIME_S = 600
CACHE_S = 0.5
"""How long the secret is used before it is read again: all tokens end when it is replaced."""
MAX_CHARS = 2048


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows: to read one job, or everything of one user.

    `key_id` is that of the key that it was made with, None on a shim without keys. `expires_at` is in Unix
    seconds of the Redis server.
    """

    key_id: str | None
    expires_at: int
    job_id: str | None = None
    user_id: str | None = None


class Tokens:
    """Makes and reads the tokens of an installation. Threads may share it.

    `WorkerUnavailable` where the Redis server cannot be reached.
    """

    def __init__(self, connection: Connection, *, cache_s: float = CACHE_S) -> None:
        self._connection = connection
        self._key = f"{connection.prefix}apikeys:token-secret"
        self._cache_s = cache_s
        self._lock = threading.Lock()
        self._read: tuple[float, bytes, float] | None = None

    def make(
        self, *, key_id: str | None, lifetime_s: int, job_id: str | None, user_id: str | None
    ) -> tuple[str, Grant]:
        """A token that ends after `lifetime_s`, and what it allows."""
        secret, now = self._secret()
        grant = Grant(key_id, int(now) + min(lifetime_s, MAX_LIFETIME_S), job_id, user_id)
        fields = {"k": grant.key_id, "e": grant.expires_at, "j": job_id, "u": user_id}
        body = _encode(json.dumps(fields, separators=(",", ":")).encode())
        return f"{PREFIX}{body}.{_encode(_sign(secret, body))}", grant

    def read(self, token: str) -> Grant | None:
        """What a token allows; None for one that is forged, damaged or has ended."""
        body, _, signature = token.removeprefix(PREFIX).partition(".")
        if not token.startswith(PREFIX) or not token.isascii() or len(token) > MAX_CHARS or not signature:
            return None
        secret, now = self._secret()
        if not hmac.compare_digest(_encode(_sign(secret, body)), signature):
            return None
        fields: dict[str, Any] = json.loads(_decode(body))
        grant = Grant(fields["k"], fields["e"], fields["j"], fields["u"])
        return grant if grant.expires_at > now else None

    def replace_secret(self) -> None:
        """End all tokens."""
        client = self._connection.client
        self._connection.with_retries(lambda: client.delete(self._key))

    def _secret(self) -> tuple[bytes, float]:
        """The secret, made on first use, and the time of the server."""
        with self._lock:
            began = time.monotonic()
            if self._read is None or began - self._read[0] >= self._cache_s:
                text, now = self._connection.with_retries(self._load, quick=True)
                self._read = began, text.encode(), now
            read_at, secret, now = self._read
            return secret, now + time.monotonic() - read_at

    def _load(self) -> tuple[str, float]:
        pipeline = self._connection.quick_client.pipeline(transaction=False)
        pipeline.get(self._key)
        pipeline.time()
        text, (seconds, micros) = pipeline.execute()
        if text is None:
            # Another process may do the same: the first one's counts.
            self._connection.quick_client.set(self._key, secrets.token_hex(32), nx=True)
            text = self._connection.quick_client.get(self._key)
        return text, seconds + micros / 1e6


def _sign(secret: bytes, body: str) -> bytes:
    return hmac.digest(secret, body.encode(), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
