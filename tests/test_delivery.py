"""`ourvidz worker io` as real processes: delivery needs nothing else, and a stop loses nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import Cancelled
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.settings import environment
from tests.factories import image_job

pytestmark = pytest.mark.system

PATIENCE_S = 30.0
CANCELLED = Outcome.failure(Cancelled("the job was cancelled"))


class Receiver:
    """A receiver whose answers can be held back; `ids` has the id of each event that came in."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.answers = threading.Event()
        self.answers.set()
        self.arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with receiver.arrived:
                    receiver.ids.append(self.headers["traceparent"].split("-")[1])
                    receiver.arrived.notify_all()
                receiver.answers.wait(PATIENCE_S)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Write nothing to the output of tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def wait_for(self, number: int) -> None:
        """Wait until so many events have arrived."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.ids) >= number, PATIENCE_S), self.ids

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()


class Outbox:
    """A ledger whose jobs end at once, and the io processes that deliver their callbacks."""

    def __init__(self, redis_url: str, folder: Path, receiver: Receiver) -> None:
        self.ledger = Ledger(redis_url)
        self._folder = folder
        self._variables = {
            "OURVIDZ_REDIS_URL": redis_url,
            "OURVIDZ_STATE_DIR": str(folder),
            "OURVIDZ_CALLBACK_URL": receiver.url,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def finish(self, job_id: str) -> None:
        """Record a job and end it: one callback."""
        record = self.ledger.register(image_job(job_id), priority=6).record
        assert self.ledger.end(record, outcome=CANCELLED)

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start an io process, and wait until it delivers."""
        env = environment(**self._variables, **variables)
        log = (self._folder / "io.log").open("ab")
        argv = [sys.executable, "-m", "ourvidz.cli.main", "worker", "io"]
        process = subprocess.Popen(argv, env=env, cwd=self._folder, stdout=log, stderr=log)
        self.processes.append(process)
        wait_until(lambda: process.pid in {worker.pid for worker in self.online()}, "its heartbeat")
        return process

    def log(self) -> str:
        """What the processes have logged."""
        return (self._folder / "io.log").read_text()

    def online(self) -> list[Any]:
        return [worker for worker in self.ledger.online_workers() if worker.state == "idle"]

    def pending(self) -> list[tuple[str, int]]:
        """Job id and deliveries of each callback that is not settled."""
        return [(event.job_id, event.deliveries) for event in self.ledger.list_events("pending")]


def wait_until(read: Callable[[], Any], what: str) -> None:
    """Wait until `read` returns a true value."""
    deadline = time.monotonic() + PATIENCE_S
    while not read():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.close()


@pytest.fixture
def outbox(redis_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Outbox]:
    made = Outbox(redis_url, tmp_path, receiver)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
    made.ledger.close()


def test_a_stopped_process_finishes_its_delivery_and_leaves_the_rest(
    outbox: Outbox, receiver: Receiver, tmp_path: Path
) -> None:
    """SIGTERM costs no receiver a repetition, and no caller a callback."""
    beats = tmp_path / "beats"
    beats.mkdir()
    process = outbox.start(OURVIDZ_BEATS_DIR=str(beats))
    (row,) = outbox.online()
    assert (row.family, row.queue, row.gpu) == ("io", "io", None)
    assert {path.name for path in beats.iterdir()} == {"process", "outbox"}, "a hang would not be noticed"
    receiver.answers.clear()
    outbox.finish("a")
    receiver.wait_for(1)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "process_stopping" in outbox.log(), "the stop")
    outbox.finish("b")
    receiver.answers.set()
    assert process.wait(PATIENCE_S) == 0
    assert outbox.pending() == [("b", 0)]
    assert outbox.online() == []
    outbox.start()
    receiver.wait_for(2)
    wait_until(lambda: not outbox.pending(), "the second callback")
    assert len(set(receiver.ids)) == 2


@pytest.mark.parametrize("how", ["a second signal", "the drain limit"])
def test_a_delivery_that_takes_too_long_is_cut_off(outbox: Outbox, receiver: Receiver, how: str) -> None:
    """It is repeated under its id when its lease has ended."""
    process = outbox.start(OURVIDZ_DRAIN_S="60" if how == "a second signal" else "0.1")
    receiver.answers.clear()
    outbox.finish("a")
    receiver.wait_for(1)
    process.send_signal(signal.SIGTERM)
    if how == "a second signal":
        process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    assert outbox.pending() == [("a", 1)]


def test_what_a_killed_process_was_delivering_is_delivered_by_another(
    redis_url: str, outbox: Outbox, receiver: Receiver
) -> None:
    """Under the same id, when the lease of the event has ended."""
    process = outbox.start(OURVIDZ_CALLBACK_TIMEOUT_S="1")
    receiver.answers.clear()
    outbox.finish("a")
    receiver.wait_for(1)
    process.kill()
    process.wait()
    receiver.answers.set()
    outbox.start(OURVIDZ_CALLBACK_TIMEOUT_S="1")
    receiver.wait_for(2)
    wait_until(lambda: not outbox.pending(), "the callback")
    assert len(set(receiver.ids)) == 1
