"""The prefork pool of GPU workers, in a real Celery worker without models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

PROMPTLY_S = 10.0
"""Well above the time that such a worker takes to stop, and well below the wait that would be noticed."""
APP = """
import os
import time
from celery import Celery, signals
from ourvidz import drain_notice

app = Celery("pooled", broker=os.environ["BROKER_URL"])
app.conf.update(
    worker_pool="ourvidz.pool:TaskPool", worker_pool_start_method="spawn", worker_redirect_stdouts=False,
    task_acks_late=True, task_ignore_result=True,
)

@signals.worker_process_init.connect
def note_child(**_):
    print("pid of the child:", os.getpid(), flush=True)

@app.task(name="run")
def run():
    print("ran", flush=True)

@signals.worker_shutting_down.connect
def announce(**_):
    drain_notice.announce()

@app.task(name="compute")
def compute():
    print("computes", flush=True)
    while not drain_notice.is_draining():
        time.sleep(0.01)
    print("knows of the drain", flush=True)
"""


class PooledWorker:
    """A Celery worker process with one child, and what it prints."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        (folder / "pooled.py").write_text(APP)
        self._output = folder / "output"
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "BROKER_URL": broker_url, "PYTHONPATH": f"{folder}:{root}"}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "pooled", "worker", "-c1", "-npooled@test", "-lDEBUG"],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.app = Celery("pooled", broker=broker_url)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened."""
        until = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < until, self._output.read_text()
            time.sleep(0.01)

    def has_printed(self, text: str) -> bool:
        return text in self._output.read_text()

    def child(self) -> int:
        """The process id of the child, once it is up."""
        self.wait_for(lambda: self.has_printed("pid of the child: ") and self.has_printed("ready."))
        return int(self._output.read_text().split("pid of the child: ")[1].split()[0])

    def messages_written(self) -> int:
        """The number of messages that the parent has written to its child."""
        stats = self.app.control.inspect(["pooled@test"], timeout=5).stats() or {}
        return int(stats.get("pooled@test", {}).get("pool", {}).get("writes", {}).get("total", 0))


@pytest.fixture
def worker(tmp_path: Path, redis_url: str) -> Iterator[PooledWorker]:
    started = PooledWorker(tmp_path, redis_url)
    yield started
    started.process.kill()
    started.process.wait()


@pytest.mark.system
def test_a_worker_that_stops_while_a_child_takes_a_message_ends_promptly(worker: PooledWorker) -> None:
    """The parent forgets a message whose receipt the child has not confirmed, and reads none of its results;
    the child would wait half a minute for that."""
    child = worker.child()
    os.kill(child, signal.SIGSTOP)
    worker.app.send_task("run")
    worker.wait_for(lambda: worker.messages_written() == 1)
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for(lambda: worker.has_printed("Worker: Stopping Pool"))
    os.kill(child, signal.SIGCONT)
    assert worker.process.wait(PROMPTLY_S) == 0
    assert worker.has_printed("ran")


@pytest.mark.system
def test_a_child_learns_that_its_worker_drains(worker: PooledWorker) -> None:
    """While it computes, and though it ignores the signal: it saves its work from then on. So does a child
    that has replaced another."""
    first = worker.child()
    os.kill(first, signal.SIGKILL)
    worker.app.send_task("compute")
    worker.wait_for(lambda: worker.has_printed("computes"))
    assert not worker.has_printed("knows of the drain")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(PROMPTLY_S) == 0
    assert worker.has_printed("knows of the drain")
