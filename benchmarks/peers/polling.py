"""A hand-written worker as the field has them: look into a list, sleep two seconds when it is empty."""

from __future__ import annotations

import os
import time

import redis

POLL_S = 2.0
_redis = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"])


def enqueue(key: str) -> None:
    """Push one."""
    _redis.rpush("polling", key)


def worker() -> None:
    """Run the worker."""
    while True:
        found = _redis.lpop("polling")
        if found is None:
            time.sleep(POLL_S)
        else:
            _redis.rpush(found, time.time())


if __name__ == "__main__":
    worker()
