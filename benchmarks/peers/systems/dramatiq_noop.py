"""dramatiq with one worker thread."""

from __future__ import annotations

import os
import time

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.worker import Worker

URL = os.environ["BENCH_REDIS_URL"]
broker = RedisBroker(url=URL)
dramatiq.set_broker(broker)
_redis = redis.Redis.from_url(URL)


@dramatiq.actor(actor_name="noop")
def noop(key: str) -> None:
    """Push the time at which the task started onto the list `key`."""
    _redis.rpush(key, time.time())


def enqueue(key: str) -> None:
    """Publish one task."""
    noop.send(key)


if __name__ == "__main__":
    Worker(broker, worker_threads=1).start()
    while True:
        time.sleep(3600)
