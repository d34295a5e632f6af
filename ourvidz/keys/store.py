"""The keys of an installation that are stored in its Redis, hashed: created, rotated and revoked while it
runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

from ourvidz.errors import Conflict, InvalidParameters, NotFound, WorkerUnavailable
from ourvidz.keys import secret
from ourvidz.keys.caller import BOUND_SCOPES, DEFAULT_RATE_CLASS, Caller, UserBinding
from ourvidz.ledger.connection import REPLICA_WAIT_S, Connection

CACHE_S = 0.5
"""How long a shim may use what it has read of a key: a key that is revoked is refused after this at most."""
MAX_CACHED = 10_000
DAY_S = 86400.0
KeyState = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One stored key. Times are Unix seconds of the Redis server; `read_at` is when it was read. The previous
    secret is valid until `previous_until`."""

    id: str
    name: str
    scopes: frozenset[str]
    rate_class: str
    binding: UserBinding | None
    created_at: float
    read_at: float
    expires_at: float | None = None
    rotated_at: float | None = None
    previous_until: float | None = None
    revoked_at: float | None = None
    hashes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def state(self) -> KeyState:
        """Whether the key was valid when it was read."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= self.read_at else "active"

    @property
    def caller(self) -> Caller:
        """Who sends the key."""
        return Caller(self.name, self.id, self.scopes, self.rate_class, self.binding)

    def accepts(self, key: str) -> bool:
        """Whether `key` is valid for it."""
        return self.state == "active" and any(secret.is_hash_of(key, stored) for stored in self.hashes)


class KeyStore:
    """The stored keys of one installation. Threads may share it.

    Keys are found in constant time, and read again from the server after `cache_s`. `WorkerUnavailable` where
    it cannot be reached: then no stored key is valid.
    """

    def __init__(self, connection: Connection, *, cache_s: float = CACHE_S) -> None:
        self._connection = connection
        self._prefix = connection.prefix
        self._cache_s = cache_s
        self._cached: dict[str, tuple[float, StoredKey | None]] = {}
        self._lock = threading.Lock()
        folder = files("ourvidz.keys.scripts")
        self._scripts = {
            verb: connection.client.register_script((folder / f"{verb}.lua").read_text(encoding="utf-8"))
            for verb in ("create_key", "rotate_key", "revoke_key")
        }

    def create(
        self,
        name: str,
        scopes: frozenset[str],
        *,
        rate_class: str = DEFAULT_RATE_CLASS,
        binding: UserBinding | None = None,
        lifetime_s: float | None = None,
    ) -> tuple[str, str]:
        """Create a key; return its id and the key itself, which is stored nowhere. Raises `Conflict` if there
        is another of this name that is not revoked."""
        key_id = secret.new_key_id()
        key = secret.new_key(key_id)
        created = self._run(
            "create_key",
            *(key_id, secret.hash_key(key), name, " ".join(sorted(scopes)), rate_class),
            *(binding.user_id if binding else None, binding.prefix if binding else None),
            None if lifetime_s is None else int(lifetime_s),
        )
        if not created:
            raise Conflict(f"There is a key with the name {name!r}; rotate or revoke it.", field="name")
        return key_id, key

    def rotate(self, key_id: str, *, grace_s: float = DAY_S) -> str:
        """Give a key a new secret, and return it. The current one stays valid for `grace_s` more seconds.

        Raises `NotFound`, and `Conflict` for a key that is revoked or has expired.
        """
        key = secret.new_key(key_id)
        answer = self._run("rotate_key", key_id, secret.hash_key(key), int(grace_s))
        if answer == 0:
            raise _not_found(key_id)
        if answer < 0:
            raise Conflict("The key is revoked or has expired: create another one.", field="id")
        return key

    def revoke(self, key_id: str) -> None:
        """Make all secrets of a key invalid. Safe to call twice.

        Raises `NotFound`, and `WorkerUnavailable` when the replicas that the installation waits for do not
        confirm it: after a failover the key would be valid.
        """
        wanted = self._connection.replica_acks
        answer, acks = self._connection.with_retries(
            lambda: self._run_replicated("revoke_key", [self._prefix, key_id], wanted)
        )
        if not answer:
            raise _not_found(key_id)
        if acks < wanted:
            raise WorkerUnavailable("The key is revoked, but the replicas have not confirmed it: repeat it.")

    def list(self) -> list[StoredKey]:
        """All keys, also those that are not valid any more, oldest first."""
        client = self._connection.quick_client
        ids = self._connection.with_retries(lambda: client.smembers(f"{self._prefix}apikeys"), quick=True)
        keys = (self._read(key_id) for key_id in sorted(ids))
        return sorted((key for key in keys if key is not None), key=lambda key: key.created_at)

    def resolve(self, name_or_id: str) -> str:
        """The id of the key with this id, or with this name and not revoked. Raises `NotFound`."""
        keys = self.list()
        if any(key.id == name_or_id for key in keys):
            return name_or_id
        for key in keys:
            if key.name == name_or_id and key.state != "revoked":
                return key.id
        raise _not_found(name_or_id)

    def identify(self, key: str) -> Caller | None:
        """Who sends a key; None for what is no valid key."""
        key_id = secret.key_id_of(key)
        if key_id is None:
            return None
        is_remembered = key_id in self._cached
        stored = self.find(key_id)
        if is_remembered and not (stored is not None and stored.accepts(key)):
            # A secret may be newer than what is remembered: it is valid as soon as it is made.
            stored = self._find_now(key_id)
        return stored.caller if stored is not None and stored.accepts(key) else None

    def find(self, key_id: str) -> StoredKey | None:
        """The key of an id, as it was at most `cache_s` ago."""
        cached = self._cached.get(key_id)
        if cached is not None and time.monotonic() - cached[0] < self._cache_s:
            return cached[1]
        return self._find_now(key_id)

    def _find_now(self, key_id: str) -> StoredKey | None:
        now = time.monotonic()
        key = self._read(key_id)
        with self._lock:
            if len(self._cached) >= MAX_CACHED:
                self._cached.clear()
            # The time before the read: what is changed during it counts as changed after it.
            self._cached[key_id] = now, key
        return key

    def _read(self, key_id: str) -> StoredKey | None:
        def read() -> tuple[tuple[int, int], dict[str, str]]:
            pipeline = self._connection.quick_client.pipeline(transaction=False)
            pipeline.time()
            pipeline.hgetall(f"{self._prefix}apikey:{key_id}")
            time_parts, fields = pipeline.execute()
            return time_parts, fields

        (seconds, _), fields = self._connection.with_retries(read, quick=True)
        return _load(key_id, fields, float(seconds)) if fields else None

    def _run(self, verb: str, *args: object) -> int:
        argv = [self._prefix, *("" if arg is None else arg for arg in args)]
        script = self._scripts[verb]
        return int(self._connection.with_retries(lambda: script(args=argv)))

    def _run_replicated(self, verb: str, argv: Sequence[str], wanted: int) -> tuple[int, int]:
        """Run a script; return its answer, and how many replicas have what it wrote, `wanted` at most."""
        pipeline = self._connection.client.pipeline(transaction=False)
        self._scripts[verb](args=argv, client=pipeline)
        if wanted:
            # A repeated call writes nothing, and must wait for the first one all the same.
            pipeline.publish(f"{self._prefix}replicated", "")
            pipeline.wait(wanted, int(REPLICA_WAIT_S * 1000))
        answers = pipeline.execute()
        return int(answers[0]), int(answers[-1]) if wanted else 0


def _load(key_id: str, fields: Mapping[str, Any], now: float) -> StoredKey:
    def time_of(name: str) -> float | None:
        return float(fields[name]) if fields.get(name) else None

    user_id, prefix = fields.get("user_id") or None, fields.get("user_prefix") or None
    previous_until = time_of("previous_until")
    previous_valid = previous_until is not None and previous_until > now
    hashes = (fields.get("hash", ""), fields.get("previous_hash", "") if previous_valid else "")
    return StoredKey(
        id=key_id,
        name=fields["name"],
        scopes=frozenset(fields["scopes"].split()),
        rate_class=fields.get("rate_class") or DEFAULT_RATE_CLASS,
        binding=UserBinding(user_id, prefix) if user_id or prefix else None,
        created_at=float(fields["created_at"]),
        read_at=now,
        expires_at=time_of("expires_at"),
        rotated_at=time_of("rotated_at"),
        previous_until=previous_until if previous_valid else None,
        revoked_at=time_of("revoked_at"),
        hashes=hashes,
    )


def _not_found(key_id: str) -> NotFound:
    return NotFound(f"There is no key {key_id!r}.", field="id", value=key_id)


def check_binding(user_id: str | None, prefix: str | None, scopes: frozenset[str]) -> UserBinding | None:
    """The binding of a new key. Raises `InvalidParameters` for both a user and a prefix, and for a scope that
    reaches beyond the jobs of users."""
    if user_id is None and prefix is None:
        return None
    if beyond := scopes - BOUND_SCOPES:
        raise InvalidParameters(
            f"A key bound to users has no scope {', '.join(sorted(beyond))}.", field="scopes"
        )
    try:
        return UserBinding(user_id, prefix)
    except ValueError:
        raise InvalidParameters("A key is bound to a user or to a prefix.", field="user") from None
