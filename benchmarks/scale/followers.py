"""Memory of one shim with many open event streams, and the latency of a token to its reader.

Each reader follows a job of its own. Only a server and a shim run; this process claims the jobs and writes
the tokens, one at a time, as workers do. The latency is from the call that writes the token to the reader's
read.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests

from benchmarks.filling import payload
from benchmarks.processes import memory_mib, processor_s
from benchmarks.results import Figures, percentiles
from benchmarks.stack import WITHOUT_LIMITS
from ourvidz.cli.console import print_note

START_S = 60.0
OPENING_AT_ONCE = 50
PAUSE_S = 0.005


def measure(followers: int, *, tokens: int) -> Figures:
    """Measure with one follower and with many."""
    with _shim() as (url, redis_url, process):
        figures: Figures = {"shim without followers: memory MiB": memory_mib(process)}
        with closing(Jobs(redis_url)) as jobs:
            for number in (1, followers):
                print_note(f"{number} followers")
                claims = [jobs.claim() for _ in range(number)]
                figures |= asyncio.run(_measure(url, process, jobs, claims, tokens))
    name = f"{followers} followers"
    empty, full = (figures[f"{each}: memory MiB"] for each in ("shim without followers", name))
    figures[f"{name}: memory KiB a follower"] = (full - empty) * 1024 / followers
    return figures


class Jobs:
    """Claimed jobs whose tokens this process writes."""

    def __init__(self, redis_url: str) -> None:
        from ourvidz.ledger.store import Ledger

        self._ledger = Ledger(redis_url)
        self._count = 0

    def claim(self) -> Any:
        """Register one more job, and claim it."""
        from ourvidz.jobs.defaults import Defaults
        from ourvidz.jobs.dialects import parse

        self._count += 1
        job_id = f"followed-{self._count}"
        self._ledger.register(
            parse(payload(job_id, "reader"), Defaults()), priority=6, suppress_callbacks=True
        )
        claim = self._ledger.claim(job_id, 1, worker_id="benchmark", lease_s=3600, token=job_id)
        assert claim is not None
        return claim

    def write_token(self, claim: Any) -> None:
        """Add a token to the stream of a job; it carries the time."""
        self._ledger.step(claim, items=[("token", {"text": "a", "at": time.time()})])

    def close(self) -> None:
        """Close the connections."""
        self._ledger.close()


async def _measure(url: str, process: psutil.Process, jobs: Jobs, claims: list[Any], tokens: int) -> Figures:
    """Open a stream for each job, write tokens to random ones, and measure their latency."""
    name = f"{len(claims)} followers"
    latencies_ms: list[float] = []
    arrived = asyncio.Event()
    opened = asyncio.Semaphore(OPENING_AT_ONCE)
    ready = [asyncio.Event() for _ in claims]
    readers = [
        asyncio.create_task(_read(url, claim.job_id, latencies_ms, opened, event, arrived))
        for claim, event in zip(claims, ready, strict=True)
    ]
    started = time.perf_counter()
    all_ready = asyncio.gather(*(event.wait() for event in ready))
    ended, _ = await asyncio.wait({all_ready, *readers}, return_when=asyncio.FIRST_COMPLETED)
    if all_ready not in ended:
        # Raises what a refused reader has raised.
        all_ready.cancel()
        ended.pop().result()
    opening_s = time.perf_counter() - started
    memory, used = memory_mib(process), processor_s(process)
    for _ in range(tokens):
        arrived.clear()
        await asyncio.to_thread(jobs.write_token, random.choice(claims))
        await asyncio.wait_for(arrived.wait(), 60)
        await asyncio.sleep(PAUSE_S)
    used = processor_s(process) - used
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    p50_ms, p99_ms = percentiles(latencies_ms)
    return {
        f"{name}: memory MiB": memory,
        f"{name}: opening s": opening_s,
        f"{name}: token latency p50 ms": p50_ms,
        f"{name}: token latency p99 ms": p99_ms,
        f"{name}: shim processor time a token ms": used * 1000 / tokens,
    }


async def _read(
    url: str,
    job_id: str,
    latencies_ms: list[float],
    opened: asyncio.Semaphore,
    ready: asyncio.Event,
    arrived: asyncio.Event,
) -> None:
    """Follow one job, and note the latency of its tokens. `ready` once the first event was read."""
    address = urlsplit(url)
    async with opened:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        while not (await reader.readline()).startswith(b"event: "):
            assert not reader.at_eof(), "the stream was refused"
        ready.set()
    try:
        kind = b""
        while line := await reader.readline():
            if line.startswith(b"event: "):
                kind = line
            elif line.startswith(b"data: ") and kind.startswith(b"event: token"):
                latencies_ms.append((time.time() - json.loads(line[6:])["at"]) * 1000)
                arrived.set()
    finally:
        writer.close()


@contextmanager
def _shim() -> Iterator[tuple[str, str, psutil.Process]]:
    """A shim on a server of its own: its URL, that of the server, and its process."""
    from ourvidz.embedded_redis import PrivateServer, find_server, free_port

    with tempfile.TemporaryDirectory(prefix="ourvidz-followers-") as folder:
        server = PrivateServer(binary=find_server(None), folder=Path(folder))
        server.start()
        port = free_port()
        env = os.environ | {
            "OURVIDZ_REDIS_URL": server.url,
            "OURVIDZ_PORTS": str(port),
            "OURVIDZ_STATE_DIR": folder,
            **WITHOUT_LIMITS,
        }
        command = [sys.executable, "-m", "ourvidz.cli.main", "worker", "web"]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_live(url)
            yield url, server.url, psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()
            server.kill()


def _wait_until_live(url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if requests.get(f"{url}/health/live", timeout=5).ok:
                return
        time.sleep(0.1)
    raise TimeoutError("the shim does not start")
