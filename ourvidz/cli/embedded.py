"""The embedded Redis-protocol server: its configuration, and when it answers.

Every acknowledged write is on disk (`appendfsync always`): losing a queued job to a power cut is not an
option, and a write costs 0.3 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import redis
from redis.exceptions import BusyLoadingError, RedisError

from ourvidz import log
from ourvidz.cli.state import StateDir
from ourvidz.cli.supervisor import POLL_S, Spec, Supervisor
from ourvidz.embedded_redis import HOST, free_port
from ourvidz.errors import OperatorError
from ourvidz.settings import environment

_log = log.get(__name__)
NAME = "redis"
STARTS = 5
"""Ports that are tried before giving up."""


def url_of(port: int, password: str) -> str:
    """Where the server on this port is."""
    return f"redis://:{password}@{HOST}:{port}/0"


def configuration(folder: Path, port: int, password: str) -> str:
    """The server's configuration file: loopback, a password, nothing evicted, every write on disk."""
    return "\n".join(
        (
            f"bind {HOST}",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{folder}"',
            "daemonize no",
            'save ""',
            "appendonly yes",
            "appendfsync always",
            "maxmemory-policy noeviction",
            "",
        )
    )


def start(supervisor: Supervisor, state: StateDir, *, binary: Path, notice: Callable[[str], None]) -> str:
    """Start the server on a free port and wait until it answers; its URL. `OperatorError` if it will not."""
    password = state.secrets().redis_password
    folder = state.root / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    _stop_orphan(folder, password)
    file = state.log(NAME)
    for _ in range(STARTS):
        port = free_port()
        config = state.keep_private("redis/redis.conf", configuration(folder, port, password))
        supervisor.start(Spec(NAME, (str(binary), str(config)), environment(), file))
        if _answers(url_of(port, password), config, lambda: supervisor.alive(NAME), notice):
            return url_of(port, password)
        supervisor.forget(NAME)
    raise OperatorError(f"the embedded Redis server does not start; its log: {file}")


def _answers(url: str, config: Path, alive: Callable[[], bool], notice: Callable[[str], None]) -> bool:
    """Wait for the server as long as it lives, also while it reads a long log; False when it died.

    A stranger that was quicker on this port may answer too, until ours has noticed.
    """
    with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2) as client:
        while alive():
            try:
                if _is_ours(client, config):
                    return True
            except BusyLoadingError:
                notice("the embedded Redis server reads what it stored")
            except RedisError as silent:
                _log.debug("redis_silent", reason=str(silent))
            time.sleep(POLL_S)
    return False


def _is_ours(client: redis.Redis, config: Path) -> bool:
    facts = client.info("server")
    return bool(facts["config_file"] == str(config))


def _stop_orphan(folder: Path, password: str) -> None:
    """Stop a server that outlived its `ourvidz up`: two must not write the same files.

    Only where the kernel does not kill children with their parent.
    """
    try:
        lines = (folder / "redis.conf").read_text().splitlines()
    except FileNotFoundError:
        return
    port = next(int(line.split()[1]) for line in lines if line.startswith("port "))
    with redis.Redis.from_url(url_of(port, password), socket_connect_timeout=1, socket_timeout=5) as client:
        try:
            if _is_ours(client, folder / "redis.conf"):
                client.shutdown()
        except RedisError:
            return
