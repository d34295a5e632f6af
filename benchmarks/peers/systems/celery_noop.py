"""Celery with its own defaults, one worker process."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

URL = os.environ["BENCH_REDIS_URL"]
app = Celery("bench", broker=URL)
app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)
_redis = redis.Redis.from_url(URL)


@app.task(name="noop")
def noop(key: str) -> None:
    """Push the time at which the task started onto the list `key`."""
    _redis.rpush(key, time.time())


def enqueue(key: str) -> None:
    """Publish one task."""
    noop.delay(key)


if __name__ == "__main__":
    app.worker_main(["worker", "-c", "1", "-P", "prefork", "-l", "ERROR"])
