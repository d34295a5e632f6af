"""The consumer of GPU workers, in a real Celery worker without models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from redis.client import PubSub

from ourvidz.consumer import FLUSH_INTERVAL_S

TASKS = 12
APP = """
import os
import signal
from celery import Celery

app = Celery("batching", broker=os.environ["BROKER_URL"])
app.conf.update(
    worker_consumer="ourvidz.consumer:Consumer", worker_pool="ourvidz.pool:TaskPool",
    worker_pool_start_method="spawn", worker_redirect_stdouts=False,
    worker_send_task_events=True, task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=1,
)

@app.task(name="run")
def run():
    pass

@app.task(name="stop")
def stop():
    os.kill(os.getppid(), signal.SIGTERM)
"""


@pytest.mark.system
def test_events_of_tasks_are_published_together_and_none_is_lost(tmp_path: Path, redis_url: str) -> None:
    """Each on its own keeps the next job waiting for an answer of the server. A worker that stops publishes
    what it has kept so far."""
    (tmp_path / "batching.py").write_text(APP)
    app = Celery("batching", broker=redis_url)
    for name in [*["run"] * (TASKS - 1), "stop"]:
        app.send_task(name)
    options = ("-c1", "-nbatching@test", "--without-gossip", "--without-mingle")
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as channel:
        channel.psubscribe("*celeryev/*")
        assert channel.get_message(timeout=5)
        batches = published_events(channel)
        published, began = calls(client), time.monotonic()
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "batching", "worker", *options],
            cwd=tmp_path,
            env={**os.environ, "BROKER_URL": redis_url, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            received: list[str] = []
            while not has_all(received):
                received += next(batches)
            assert worker.wait(30) == 0
        finally:
            worker.kill()
            worker.wait()
        sent, seconds = calls(client) - published, time.monotonic() - began
    # Beside batches of tasks: the worker is online, and offline.
    assert sent <= min(TASKS, seconds / FLUSH_INTERVAL_S + 5)


def published_events(channel: PubSub) -> Iterator[list[str]]:
    """The types of the events in each message that a worker publishes."""
    while message := channel.get_message(timeout=20):
        body = json.loads(b64decode(json.loads(message["data"])["body"]))
        yield [event["type"] for event in (body if isinstance(body, list) else [body])]


def has_all(received: list[str]) -> bool:
    """Whether all messages were received, and all tasks ended but the one that stopped the worker."""
    counts = Counter(received)
    return (
        counts["task-received"] == TASKS and counts["task-started"] >= counts["task-succeeded"] >= TASKS - 1
    )


def calls(client: redis.Redis) -> int:
    """How often clients have published something."""
    return int(client.info("commandstats").get("cmdstat_publish", {}).get("calls", 0))
