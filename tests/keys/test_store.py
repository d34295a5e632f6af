"""Stored keys: created, found, rotated, revoked; only their hashes are stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.errors import Conflict, InvalidParameters, NotFound, WorkerUnavailable
from ourvidz.keys import secret
from ourvidz.keys.caller import Caller, UserBinding
from ourvidz.keys.store import CACHE_S, KeyStore, check_binding
from ourvidz.ledger.connection import Connection
from ourvidz.ledger.store import Ledger

JOBS = frozenset({"jobs"})


def test_a_key_identifies_its_caller(keys: KeyStore) -> None:
    """Scopes, rate class and binding are those that it was created with."""
    binding = UserBinding(prefix="shop-")
    key_id, key = keys.create("shop", JOBS, rate_class="large", binding=binding)
    assert key.startswith(f"ovz_{key_id}_")
    assert keys.identify(key) == Caller("shop", key_id, JOBS, "large", binding)


@pytest.mark.parametrize("change", ["secret", "id", "case", "prefix", "longer", "shorter", "empty"])
def test_what_is_not_the_key_identifies_nobody(keys: KeyStore, change: str) -> None:
    """Nor does a key of the right id with another secret."""
    key_id, key = keys.create("shop", JOBS)
    wrong = {
        "secret": secret.new_key(key_id),
        "id": key.replace(key_id, secret.new_key_id()),
        "case": key.swapcase(),
        "prefix": key.removeprefix("ovz_"),
        "longer": f"{key}x",
        "shorter": key[:-1],
        "empty": f"ovz_{key_id}_",
    }[change]
    assert keys.identify(wrong) is None


def test_no_secret_is_stored(keys: KeyStore, connection: Connection) -> None:
    """Who reads the Redis server, or a backup of it, cannot call the shim."""
    key_id, key = keys.create("shop", JOBS)
    rotated = keys.rotate(key_id)
    stored = repr([
        connection.client.hgetall(name)
        for name in connection.client.scan_iter(f"{connection.prefix}apikey:*")
    ])  # fmt: skip
    assert "shop" in stored
    assert not any(text.rpartition("_")[2] in stored + repr(keys.list()) for text in (key, rotated))


def test_a_rotated_key_and_the_one_before_it_are_valid(keys: KeyStore) -> None:
    """Callers change over one by one; the key before the previous one ends."""
    key_id, first = keys.create("shop", JOBS)
    second = keys.rotate(key_id)
    assert keys.identify(first) == keys.identify(second) == Caller("shop", key_id, JOBS)
    third = keys.rotate(key_id)
    assert [keys.identify(key) is not None for key in (first, second, third)] == [False, True, True]
    last = keys.rotate(key_id, grace_s=0)
    assert [keys.identify(key) is not None for key in (second, third, last)] == [False, False, True]


def test_the_previous_key_ends_with_its_grace(keys: KeyStore, connection: Connection) -> None:
    """By the clock of the server."""
    key_id, first = keys.create("shop", JOBS)
    second = keys.rotate(key_id, grace_s=60)
    connection.client.hset(f"{connection.prefix}apikey:{key_id}", "previous_until", int(time.time()) - 1)
    assert (keys.identify(first), keys.identify(second) is not None) == (None, True)
    assert keys.list()[0].previous_until is None


def test_an_expired_key_is_not_valid(keys: KeyStore, connection: Connection) -> None:
    """Nor can it be rotated: that would make it valid again."""
    key_id, key = keys.create("shop", JOBS, lifetime_s=60)
    assert keys.identify(key) is not None
    connection.client.hset(f"{connection.prefix}apikey:{key_id}", "expires_at", int(time.time()) - 1)
    assert keys.identify(key) is None
    assert keys.list()[0].state == "expired"
    with pytest.raises(Conflict):
        keys.rotate(key_id)


def test_a_revoked_key_is_not_valid_whichever_secret_it_has(keys: KeyStore) -> None:
    """It stays in the list, and cannot be rotated."""
    key_id, first = keys.create("shop", JOBS)
    second = keys.rotate(key_id)
    keys.revoke(key_id)
    keys.revoke(key_id)
    assert keys.identify(first) is keys.identify(second) is None
    assert [key.state for key in keys.list()] == ["revoked"]
    with pytest.raises(Conflict):
        keys.rotate(key_id)


def test_another_store_refuses_a_revoked_key_within_a_second(keys: KeyStore, connection: Connection) -> None:
    """Every shim has a store of its own, which remembers keys for less than that."""
    key_id, key = keys.create("shop", JOBS)
    shims = [KeyStore(connection), KeyStore(connection)]
    assert all(shim.identify(key) for shim in shims)
    keys.revoke(key_id)
    revoked_at = time.monotonic()
    for shim in shims:
        while True:
            asked_at = time.monotonic()
            if shim.identify(key) is None:
                break
            assert asked_at < revoked_at + 1.0
    assert CACHE_S < 1.0


def test_a_remembered_key_costs_no_round_trip(keys: KeyStore, connection: Connection) -> None:
    """A caller that sends many requests does not slow down the ledger."""
    key_id, key = keys.create("shop", JOBS)
    shim = KeyStore(connection, cache_s=60)
    assert shim.identify(key)
    keys.revoke(key_id)
    assert all(shim.identify(key) for _ in range(20))


def test_names_are_used_once(keys: KeyStore) -> None:
    """A name in the audit log is one key; that of a revoked one is free again."""
    key_id, _ = keys.create("shop", JOBS)
    with pytest.raises(Conflict):
        keys.create("shop", JOBS)
    keys.revoke(key_id)
    again, _ = keys.create("shop", JOBS)
    assert (keys.resolve("shop"), keys.resolve(key_id)) == (again, key_id)
    for call in (keys.resolve, keys.rotate, keys.revoke):
        with pytest.raises(NotFound):
            call("absent0000")


def test_a_full_server_revokes_and_rotates(start_redis: Any) -> None:
    """A key that leaked must end when the server has no memory left, too."""
    ledger = Ledger(start_redis("--maxmemory-policy", "noeviction").url)
    keys = KeyStore(ledger.connection, cache_s=0)
    (one, first), (two, second) = keys.create("one", JOBS), keys.create("two", JOBS)
    ledger.connection.client.config_set("maxmemory", 1)
    keys.revoke(one)
    rotated = keys.rotate(two, grace_s=0)
    assert keys.identify(first) is keys.identify(second) is None
    assert keys.identify(rotated) is not None
    ledger.close()


def test_a_revocation_waits_for_the_replicas(
    make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a failover would make a key that leaked valid again. The call may be repeated."""
    monkeypatch.setattr("ourvidz.keys.store.REPLICA_WAIT_S", 0.01)
    connection = make_ledger().connection
    key_id, key = KeyStore(connection).create("shop", JOBS)
    connection.replica_acks = 1
    for _ in range(2):
        with pytest.raises(WorkerUnavailable, match="repeat it"):
            KeyStore(connection).revoke(key_id)
    connection.replica_acks = 0
    KeyStore(connection).revoke(key_id)
    assert KeyStore(connection).identify(key) is None


def test_a_repeated_call_of_a_script_changes_nothing(keys: KeyStore, connection: Connection) -> None:
    """A call is sent again after a lost reply."""
    key_id, first = keys.create("shop", JOBS)
    new = secret.hash_key(secret.new_key(key_id))
    assert [keys._run("rotate_key", key_id, new, 60) for _ in range(2)] == [1, 1]
    assert keys.identify(first) is not None
    stored = connection.client.hget(f"{connection.prefix}apikey:{key_id}", "previous_hash")
    assert stored == secret.hash_key(first)


BEYOND = [("ann", None, {"jobs", "admin"}), (None, "a", {"read"}), ("ann", "a", {"jobs"})]


@pytest.mark.parametrize(("user", "prefix", "scopes"), BEYOND)
def test_a_bound_key_has_no_scope_that_reaches_beyond_users(user, prefix, scopes) -> None:
    """An administrator sees everything; such a binding would promise what it does not keep."""
    with pytest.raises(InvalidParameters):
        check_binding(user, prefix, frozenset(scopes))
