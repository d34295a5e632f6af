"""The processes of one control host, and the emulated workers, each started by itself."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests

from benchmarks.processes import SERVER, processor_s
from benchmarks.stack import WITHOUT_LIMITS
from ourvidz.embedded_redis import PrivateServer, find_server, free_port

START_S = 90.0
WORKERS = "workers"
"""The role of the emulated workers. They would run on other hosts and are no part of the control host."""


class ControlHost:
    """Running processes by role. `shims`: the URLs of the shims; `redis_url`: that of the server."""

    def __init__(self, shims: list[str], redis_url: str, processes: dict[str, list[psutil.Process]]) -> None:
        self.shims = shims
        self.redis_url = redis_url
        self._processes = processes

    def processor_s(self) -> dict[str, float]:
        """Seconds of processor time that each role has used so far."""
        return {
            role: sum(
                processor_s(each)
                for process in processes
                for each in (process, *process.children(recursive=True))
            )
            for role, processes in self._processes.items()
        }


@contextmanager
def running_host(
    *, shims: int, senders: int, gpus: int, worker_processes: int, callback_port: int
) -> Iterator[ControlHost]:
    """Run a server, shims, io processes, a keeper, and emulated workers for so many GPUs."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="ourvidz-fleet-") as folder:
        (Path(folder) / "redis").mkdir()
        options = ("--appendonly", "yes", "--appendfsync", "always")
        server = PrivateServer(*options, binary=find_server(None), folder=Path(folder) / "redis")
        server.start()
        env = _environment(server.url, folder, callback_port)

        def start(*arguments: str, **variables: str) -> psutil.Process:
            command = [sys.executable, "-m", *arguments]
            log = (Path(folder) / f"{len(started)}.log").open("wb")
            process = subprocess.Popen(command, env=env | variables, stdout=log, stderr=log)
            started.append(process)
            return psutil.Process(process.pid)

        def worker(name: str, **variables: str) -> psutil.Process:
            return start("ourvidz.cli.main", "worker", name, **variables)

        try:
            ports = [str(free_port()) for _ in range(shims)]
            shares = [
                gpus // worker_processes + (n < gpus % worker_processes) for n in range(worker_processes)
            ]
            processes = {
                "web": [worker("web", OURVIDZ_PORTS=port) for port in ports],
                "io": [worker("io", OURVIDZ_GPU=f"io{number}") for number in range(senders)],
                "keeper": [worker("keeper")],
                WORKERS: [
                    start("benchmarks.fleet.workers", str(share), OURVIDZ_GPU=f"fleet{number}")
                    for number, share in enumerate(shares)
                ],
            }
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            for url in urls:
                _wait_until_ready(url)
            processes[SERVER] = [psutil.Process(_server_pid(server.url))]
            yield ControlHost(urls, server.url, processes)
        finally:
            _stop(started)
            server.kill()


def _environment(server_url: str, folder: str, callback_port: int) -> dict[str, str]:
    """The variables of all processes of the host."""
    return {
        **os.environ,
        "OURVIDZ_REDIS_URL": server_url,
        "OURVIDZ_STATE_DIR": folder,
        "OURVIDZ_MODELS": "benchmarks.null_models:build_sleeping",
        "OURVIDZ_CALLBACK_URL": f"http://127.0.0.1:{callback_port}/callback",
        "JOB_CALLBACK_SECRET": secrets.token_hex(16),
        "OURVIDZ_LOG_LEVEL": "ERROR",
        **WITHOUT_LIMITS,
    }


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and kill those that do not within ten seconds."""
    for process in processes:
        process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def _server_pid(url: str) -> int:
    import redis

    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def _wait_until_ready(url: str) -> None:
    """Wait until a shim answers and knows of a worker and of a sender."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if requests.get(f"{url}/health/ready", timeout=5).ok:
                return
        time.sleep(0.1)
    raise TimeoutError("the control host does not start")
