"""Measures one peer: latency, throughput, processor time, and what its server did."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
import redis
import requests

from benchmarks.peers.environments import SYSTEMS, python_of
from benchmarks.peers.table import PEERS, Queue, Server
from benchmarks.processes import differences, processor_s
from benchmarks.results import Figures, percentiles
from benchmarks.server_load import server_load
from ourvidz.embedded_redis import free_port

START_S = 60.0
SETTLE_S = 0.3
WARM_UP = 5
BUSY_PAUSE_S = 0.0005


def measure_peer(name: str, *, probes: int, jobs: int, redis_url: str) -> Figures:
    """Measure a no-op on a peer with one worker process.

    The processor time is that of the worker, and of the Redis server where the peer has one; not that of the
    caller.
    """
    peer = PEERS[name]
    if isinstance(peer, Queue):
        return _measure_queue(name, peer, probes, jobs, redis_url)
    return _measure_server(name, peer, probes, jobs)


def _measure_queue(name: str, peer: Queue, probes: int, jobs: int, redis_url: str) -> Figures:
    env = {"BENCH_REDIS_URL": redis_url}
    driver_arguments = ("-m", "driver", peer.script)
    client = redis.Redis.from_url(redis_url)
    try:
        with (
            _running(name, peer.worker or ("-m", peer.script), env) as worker,
            _running(name, driver_arguments, env, piped=True) as driver,
        ):
            _ask(driver, "latency", WARM_UP)
            latencies_ms = _ask(driver, "latency", probes)
            server = psutil.Process(client.info("server")["process_id"])
            load, before = server_load(client), _tree_s(worker) + processor_s(server)
            seconds = _ask(driver, "throughput", jobs)
            time.sleep(SETTLE_S)
            used_s = _tree_s(worker) + processor_s(server) - before
            per_job = {name: value / jobs for name, value in differences(load, server_load(client)).items()}
    finally:
        client.close()
    return {
        **_latencies(latencies_ms),
        "jobs/s": jobs / seconds,
        "processor time a job: total ms": used_s * 1000 / jobs,
        "server: round trips a job": per_job["round_trips"],
        **({"server: fsyncs a job": per_job["fsyncs"]} if "fsyncs" in per_job else {}),
    }


def _measure_server(name: str, peer: Server, probes: int, jobs: int) -> Figures:
    port = free_port()
    arguments = [each.format(port=port) for each in peer.worker] or ["-m", peer.script]
    url = f"http://127.0.0.1:{port}{peer.path}"
    with _running(name, tuple(arguments), {"PORT": str(port), **dict(peer.env)}) as process:
        _wait_until_served(url, peer)
        session = requests.Session()
        latencies_ms = []
        for number in range(-WARM_UP, probes):
            submitted_at = time.time()
            answer = _post(session, url, peer)
            if number >= 0:
                latencies_ms.append((peer.started(answer.json()) - submitted_at) * 1000)
        before, began = _tree_s(process), time.perf_counter()
        with ThreadPoolExecutor(peer.clients) as pool:
            list(pool.map(lambda count: _post_many(url, peer, count), _shares(jobs, peer.clients)))
        seconds = time.perf_counter() - began
        used_s = _tree_s(process) - before
    return {
        **_latencies(latencies_ms),
        "jobs/s": jobs / seconds,
        "processor time a job: total ms": used_s * 1000 / jobs,
    }


def _latencies(values_ms: list[float]) -> Figures:
    p50_ms, p99_ms = percentiles(values_ms)
    return {"submit to start: p50 ms": p50_ms, "submit to start: p99 ms": p99_ms}


def _shares(jobs: int, clients: int) -> list[int]:
    return [jobs // clients + (number < jobs % clients) for number in range(clients)]


def _post_many(url: str, peer: Server, count: int) -> None:
    """Send requests one after the other on one connection. Fails unless each is answered."""
    session = requests.Session()
    for _ in range(count):
        peer.started(_post(session, url, peer).json())


def _post(session: requests.Session, url: str, peer: Server) -> requests.Response:
    """Send one request, again while the server refuses it as busy (409): cog does, until a moment after its
    answer to the request before."""
    while (answer := session.post(url, json=peer.body, timeout=60)).status_code == 409:
        time.sleep(BUSY_PAUSE_S)
    answer.raise_for_status()
    return answer


def _wait_until_served(url: str, peer: Server) -> None:
    """Wait until a request is answered as it should be."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            peer.started(requests.post(url, json=peer.body, timeout=10).json())
            return
        except (requests.RequestException, KeyError, TypeError, ValueError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


@contextmanager
def _running(
    name: str, arguments: tuple[str, ...], env: dict[str, str], *, piped: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Run a script in the venv of a peer, and stop it with its children afterwards."""
    pipe = subprocess.PIPE if piped else subprocess.DEVNULL
    python = python_of(name)
    # Servers start `python` by name.
    path = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))
    base = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [str(python), *arguments],
        cwd=SYSTEMS,
        env={**base, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **env},
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def _ask(driver: subprocess.Popen[str], command: str, number: int) -> Any:
    """Send one command to the driver and return its answer."""
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.write(f"{command} {number}\n")
    driver.stdin.flush()
    return json.loads(driver.stdout.readline())


def _tree_s(process: subprocess.Popen[str]) -> float:
    """Seconds of processor time of a process and everything that it started."""
    root = psutil.Process(process.pid)
    return sum(map(processor_s, [root, *root.children(recursive=True)]))
