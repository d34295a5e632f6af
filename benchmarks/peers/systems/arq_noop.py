"""arq, one job at a time, as a GPU needs it. It polls, every half second by default; here every 10 ms, since
with that default it would run two jobs a second."""

from __future__ import annotations

import os
import time
from typing import Any

from arq import create_pool, run_worker
from arq.connections import ArqRedis, RedisSettings

_settings = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])
_pool: ArqRedis | None = None


async def noop(ctx: dict[str, Any], key: str) -> None:
    """Push the time at which the task started onto the list `key`."""
    await ctx["redis"].rpush(key, time.time())


async def enqueue(key: str) -> None:
    """Publish one task."""
    global _pool
    if _pool is None:
        _pool = await create_pool(_settings)
    await _pool.enqueue_job("noop", key)


class WorkerSettings:
    """What arq reads."""

    functions = (noop,)
    redis_settings = _settings
    max_jobs = 1
    poll_delay = 0.01
    keep_result = 0


if __name__ == "__main__":
    run_worker(WorkerSettings)  # type: ignore[arg-type]
