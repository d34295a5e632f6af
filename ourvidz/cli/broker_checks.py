"""The checks of the Redis server: it answers, evicts nothing, and keeps what it was given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import redis

from ourvidz.cli.checks import NETWORK_TIMEOUT_S, Check, failed, ok, skipped
from ourvidz.errors import SettingsError
from ourvidz.redis_clients import open_client
from ourvidz.settings import Settings

OLDEST_VERSION = (6, 2)
"""The first with `LMOVE` and `ZRANGE BYSCORE`, which the ledger and Kombu use. Valkey began at 7.2."""
NO_EVICTION = "noeviction"


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself. None is what it does not say, as hosted ones do."""

    name: str
    compatible_with: tuple[int, ...]
    policy: str | None
    aof: bool | None
    aof_fsync: str | None
    snapshots: bool | None
    role: str | None
    replicas: int


def read_server(url: str, *, timeout_s: float = NETWORK_TIMEOUT_S) -> Server:
    """Ask a server for its version, its eviction policy, its persistence and its replicas.

    Raises `redis.RedisError` or `ValueError` when it cannot be reached or is addressed wrongly.
    """
    with open_client(url, connect_s=timeout_s, answer_s=timeout_s) as client:
        client.ping()
        info: dict[str, Any] = client.info()
        policy = info.get("maxmemory_policy") or _configured(client, "maxmemory-policy")
        save = _configured(client, "save")
        aof = info.get("aof_enabled")
        return Server(
            name=f"Valkey {info['valkey_version']}"
            if "valkey_version" in info
            else f"version {info.get('redis_version')}",
            compatible_with=_version(str(info.get("redis_version", ""))),
            policy=policy,
            aof=None if aof is None else bool(int(aof)),
            aof_fsync=_configured(client, "appendfsync"),
            snapshots=None if save is None else bool(save),
            role=info.get("role"),
            replicas=int(info.get("connected_slaves") or 0),
        )


def check_broker(settings: Settings) -> Check:
    """Check that the Redis server responds, is recent enough, takes writes, and evicts no keys. Without a
    configured server, that `ourvidz up` can start one."""
    from ourvidz.embedded_redis import find_server

    url, fix = broker_address(settings)
    if url is None:
        try:
            return ok("broker", f"`ourvidz up` will start {find_server(settings.redis_server_bin)}")
        except SettingsError as missing:
            return failed("broker", missing.message, "pip install 'ourvidz[embedded]'")
    try:
        server = read_server(url)
    except (redis.RedisError, ValueError) as error:
        return failed("broker", f"{type(error).__name__}: {error}", fix)
    if server.policy not in (NO_EVICTION, None):
        reason = f"maxmemory-policy is {server.policy}: jobs can be lost"
        return failed("broker", reason, f"set it to {NO_EVICTION}")
    if server.compatible_with and server.compatible_with < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        return failed("broker", f"{server.name} is too old", f"use Redis {oldest} or newer, or Valkey")
    if server.role not in ("master", None):
        return failed("broker", f"it is a replica ({server.role}): it takes no writes", "name the primary")
    return ok("broker", f"{server.name}, {server.policy or 'eviction policy unknown'}")


def check_durability(settings: Settings) -> Check:
    """Check that accepted jobs survive a restart of the Redis server, and that it has the replicas for which
    submissions wait."""
    url, fix = broker_address(settings)
    if url is None:
        return skipped("durability", "the server of `ourvidz up` has an append-only file")
    try:
        server = read_server(url)
    except (redis.RedisError, ValueError) as error:
        return failed("durability", f"{type(error).__name__}: {error}", fix)
    if server.replicas < settings.replica_acks:
        return failed(
            "durability",
            f"it has {server.replicas} replicas, and submissions wait for {settings.replica_acks}",
            "connect the replicas, or lower OURVIDZ_REPLICA_ACKS",
        )
    replicas = f"replicas: {server.replicas}"
    if server.aof is None:
        return ok("durability", f"the server does not say how it stores its data, {replicas}")
    if not server.aof:
        lost = "everything since its last snapshot is" if server.snapshots else "all jobs are"
        return failed("durability", f"no append-only file: {lost} lost with a restart", "set appendonly yes")
    if server.aof_fsync == "no":
        reason = "appendfsync is no: a power failure loses about 30 s of accepted jobs"
        return failed("durability", reason, "set it to everysec or always")
    losses = {"always": "nothing", "everysec": "up to 2 s"}
    loss = losses.get(server.aof_fsync or "", "an unknown time (appendfsync cannot be read)")
    return ok("durability", f"append-only file, a power failure loses {loss}, {replicas}")


def require_no_eviction(settings: Settings, *, timeout_s: float = 2.0) -> None:
    """In the production profile, raise `SettingsError` if the server may delete keys when memory is short.

    A server that cannot be reached, or does not say, passes: the process waits for it anyway.
    """
    if settings.profile != "production":
        return
    try:
        policy = read_server(settings.redis_url, timeout_s=timeout_s).policy
    except (redis.RedisError, ValueError):
        return
    if policy not in (NO_EVICTION, None):
        raise SettingsError(
            f"OURVIDZ_REDIS_URL: the server's maxmemory-policy is {policy}, so it may delete queued jobs;"
            f" set it to {NO_EVICTION}",
            field="OURVIDZ_REDIS_URL",
        )


def broker_address(settings: Settings) -> tuple[str | None, str]:
    """The URL of the configured or running server, None without one; and what to do if it does not answer."""
    from ourvidz.cli.state import StateDir

    if settings.configured_redis_url or settings.upstash_url:
        return settings.redis_url, "start it, or correct OURVIDZ_REDIS_URL"
    running: str | None = (StateDir(settings.state_dir).read_ready() or {}).get("redis")
    return running, "restart `ourvidz up`"


def _configured(client: Any, name: str) -> str | None:
    """A configuration value; None where the server does not tell it, or not this user."""
    try:
        value: str | None = client.config_get(name).get(name)
    except redis.RedisError:
        return None
    return value


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
