"""RQ with SimpleWorker, its fastest: jobs run in the worker itself."""

from __future__ import annotations

import os
import time

import redis
from rq import Queue, SimpleWorker

_redis = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"])
_queue = Queue("bench", connection=_redis)


def noop(key: str) -> None:
    """Push the time at which the task started onto the list `key`."""
    _redis.rpush(key, time.time())


def enqueue(key: str) -> None:
    """Publish one task."""
    _queue.enqueue("rq_noop.noop", key, result_ttl=0)


if __name__ == "__main__":
    SimpleWorker([_queue], connection=_redis).work(logging_level="ERROR")
