"""A polling worker: pops from a Redis list, and sleeps two seconds when it is empty."""

from __future__ import annotations

import os
import time

import redis

POLL_S = 2.0
_redis = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"])


def enqueue(key: str) -> None:
    """Push one task."""
    _redis.rpush("polling", key)


def run() -> None:
    """Run the worker until it is killed."""
    while True:
        key = _redis.lpop("polling")
        if key is None:
            time.sleep(POLL_S)
        else:
            _redis.rpush(key, time.time())


if __name__ == "__main__":
    run()
