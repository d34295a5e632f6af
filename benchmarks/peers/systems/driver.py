"""Submits no-ops to a queue from the peer's own venv, as told on standard input.

    python -m driver SCRIPT

`latency N` answers with a JSON list: for N single no-ops, the milliseconds from the submission to the start.
`throughput N` answers with the seconds from the first submission until the N-th no-op has run. Eight threads
submit, or eight coroutines where the peer's `enqueue` is one.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

CLIENTS = 8
STARTED, DONE = "bench:started", "bench:done"
PAUSE_S = 0.01


class Driver:
    """The producer of one peer. An asynchronous one keeps its event loop."""

    def __init__(self, script: str) -> None:
        self._peer: Any = importlib.import_module(script)
        self._client = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"])
        self._is_async = inspect.iscoroutinefunction(self._peer.enqueue)
        self._loop = asyncio.new_event_loop()

    def latency(self, probes: int) -> list[float]:
        """Milliseconds from the submission of single no-ops to their start."""
        latencies = []
        for _ in range(probes):
            time.sleep(PAUSE_S)
            submitted_at = time.time()
            self._enqueue(STARTED)
            item: Any = self._client.blpop([STARTED], timeout=60)
            latencies.append((float(item[1]) - submitted_at) * 1000)
        return latencies

    def throughput(self, jobs: int) -> float:
        """Seconds until all no-ops that were submitted at once have run."""
        self._client.delete(DONE)
        started = time.perf_counter()
        if self._is_async:
            self._loop.run_until_complete(self._enqueue_many(jobs))
        else:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(lambda _: self._peer.enqueue(DONE), range(jobs)))
        while self._client.llen(DONE) < jobs:  # type: ignore[operator]
            time.sleep(0.01)
        return time.perf_counter() - started

    def _enqueue(self, key: str) -> None:
        if self._is_async:
            self._loop.run_until_complete(self._peer.enqueue(key))
        else:
            self._peer.enqueue(key)

    async def _enqueue_many(self, jobs: int) -> None:
        async def some(count: int) -> None:
            for _ in range(count):
                await self._peer.enqueue(DONE)

        counts = [jobs // CLIENTS + (number < jobs % CLIENTS) for number in range(CLIENTS)]
        await asyncio.gather(*map(some, counts))


def main() -> None:
    """Answer one line for each line of standard input."""
    driver = Driver(sys.argv[1])
    for line in sys.stdin:
        command, number = line.split()
        print(json.dumps(getattr(driver, command)(int(number))), flush=True)


if __name__ == "__main__":
    main()
