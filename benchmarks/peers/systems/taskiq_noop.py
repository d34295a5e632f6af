"""taskiq with the acknowledged stream broker of taskiq-redis, one worker process."""

from __future__ import annotations

import os
import time

import redis.asyncio
from taskiq_redis import RedisStreamBroker

URL = os.environ["BENCH_REDIS_URL"]
broker = RedisStreamBroker(URL)
_redis = redis.asyncio.Redis.from_url(URL)
_started = False


@broker.task(task_name="noop")
async def noop(key: str) -> None:
    """Push the time at which the task started onto the list `key`."""
    await _redis.rpush(key, time.time())


async def enqueue(key: str) -> None:
    """Publish one task."""
    global _started
    if not _started:
        _started = True
        await broker.startup()
    await noop.kiq(key)
