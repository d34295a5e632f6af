"""The embedded Redis-protocol server of `ourvidz up`: writes its configuration and starts it.

Every acknowledged command is on disk (`appendfsync always`): a power cut must not lose a queued job. A write
costs 0.3 ms.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from ourvidz import log
from ourvidz.cli.state import StateDir
from ourvidz.cli.supervisor import POLL_S, ProcessSpec, Supervisor
from ourvidz.embedded_redis import HOST, free_port
from ourvidz.errors import OperatorError
from ourvidz.liveness.beats import BEAT_INTERVAL_S, Beat
from ourvidz.settings import environment

_log = log.get(__name__)
NAME = "redis"
"""The name of the server among the supervised processes."""
START_ATTEMPTS = 5
"""Ports that are tried before giving up."""
HANG_S = 60.0
"""How long the server may answer nothing. A disk that writes slowly makes it pause."""


def url_of(port: int, password: str) -> str:
    """The server's URL, with its password."""
    return f"redis://:{password}@{HOST}:{port}/0"


def configuration(folder: Path, port: int, password: str) -> str:
    """The text of the server's configuration file: loopback, password, no eviction, every write on disk."""
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


def folder_of(state: StateDir) -> Path:
    """The server's data directory, made if it is missing."""
    folder = state.root / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def start(
    supervisor: Supervisor,
    state: StateDir,
    *,
    binary: Path,
    notify: Callable[[str], None],
    hang_s: float = HANG_S,
) -> str:
    """Start the server on a free port, wait until it answers, and return its URL.

    `notify` gets a line of text while the server loads its data. `hang_s`: how long it may leave the pings of
    `start_probing` unanswered before the supervisor restarts it. Raises `OperatorError` if it does not start.
    """
    password = state.secrets().redis_password
    folder = folder_of(state)
    _stop_orphan(folder, password)
    log_file = state.log(NAME)
    for _ in range(START_ATTEMPTS):
        port = free_port()
        config = state.write_private("redis/redis.conf", configuration(folder, port, password))
        argv = (str(binary), str(config))
        beats = state.beats(NAME)
        supervisor.start(ProcessSpec(NAME, argv, environment(), log_file, beats=beats, hang_s=hang_s))
        if _wait_until_ready(url_of(port, password), config, lambda: supervisor.is_running(NAME), notify):
            return url_of(port, password)
        supervisor.kill(NAME)
    raise OperatorError(f"the embedded Redis server does not start; its log: {log_file}")


def start_probing(url: str, state: StateDir) -> None:
    """Ping the server from a thread for as long as this process runs. An answer, also an error, is a beat."""
    beat = Beat(state.beats(NAME), "ping")

    def repeat() -> None:
        with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=5) as client:
            while True:
                try:
                    client.ping()
                    beat()
                except (ResponseError, BusyLoadingError):
                    beat()
                except RedisError as error:
                    _log.debug("redis_silent", reason=str(error))
                time.sleep(BEAT_INTERVAL_S)

    threading.Thread(target=repeat, name="redis-ping", daemon=True).start()


def _wait_until_ready(
    url: str, config: Path, is_running: Callable[[], bool], notify: Callable[[str], None]
) -> bool:
    """Wait for the server's answer as long as its process runs, however long it loads; False when it exits.

    Another server may have bound the port first and answer too, until the process of ours exits.
    """
    with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2) as client:
        while is_running():
            try:
                if _uses_config(client, config):
                    return True
            except BusyLoadingError:
                notify("the embedded Redis server reads what it stored")
            except RedisError as error:
                _log.debug("redis_silent", reason=str(error))
            time.sleep(POLL_S)
    return False


def _uses_config(client: redis.Redis, config: Path) -> bool:
    """Whether the server was started with this configuration file."""
    return bool(client.info("server")["config_file"] == str(config))


def _stop_orphan(folder: Path, password: str) -> None:
    """Stop a server of an earlier `ourvidz up`: two servers must not write the same files.

    There can be one only where the kernel does not kill children with their parent.
    """
    try:
        lines = (folder / "redis.conf").read_text().splitlines()
    except FileNotFoundError:
        return
    port = next(int(line.split()[1]) for line in lines if line.startswith("port "))
    with redis.Redis.from_url(url_of(port, password), socket_connect_timeout=1, socket_timeout=5) as client:
        try:
            if _uses_config(client, folder / "redis.conf"):
                client.shutdown()
        except RedisError:
            return
