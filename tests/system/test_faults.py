"""Failures of processes, connections and receivers during jobs: every job ends exactly once.

The worker has models without weights, as its pool child is killed often; `test_resume` and `test_wan` kill
workers with pipelines.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from ourvidz.settings import environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

LONG = {"steps": 100, "num_images": 3, "width": 64, "height": 64, "seed": 3}
"""Six seconds."""
SHORT = {"steps": 1, "width": 64, "height": 64, "seed": 1}
MODELS = {"OURVIDZ_MODELS": "campaigns.slow_models:build"}


class Receiver:
    """A callback receiver that can be closed, or accept connections without responding (`silent`)."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.received: list[tuple[str, str, str]] = []
        self._changed = threading.Condition()
        self.silent = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/callback"

    def open(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.silent.is_set():
                    receiver.wait_until_closed()
                    return
                receiver.add(body, self.headers["webhook-id"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the test's output readable."""

        ThreadingHTTPServer.allow_reuse_address = True
        self._closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._closed.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def wait_until_closed(self) -> None:
        self._closed.wait(60)

    def add(self, body: bytes, event_id: str) -> None:
        payload = json.loads(body)
        with self._changed:
            self.received.append((payload["job_id"], payload["status"], event_id))
            self._changed.notify_all()

    def wait_for(self, job_id: str, status: str, within_s: float) -> float:
        """Wait for a callback with this status; return after how many seconds it was received."""
        started_at = time.monotonic()
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: any(one[:2] == (job_id, status) for one in self.received), timeout=within_s
            )
        assert arrived, f"{job_id}: no {status} within {within_s:g} s, only {self.received}"
        return time.monotonic() - started_at


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def other_receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.open()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def running(
    stacks: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
    receiver: Receiver,
    other_receiver: Receiver,
) -> Iterator[Any]:
    """One stack for all faults: it recovers after each."""
    allowed = f"{receiver.host} {other_receiver.host}"
    env = {**MODELS, "OURVIDZ_CALLBACK_ALLOW": allowed}
    with stacks(tmp_path_factory.mktemp("faults"), env=env) as running:
        yield running


def until(read: Callable[[], Any], *, why: str, within_s: float = 30) -> None:
    """Wait until `read` returns a true value."""
    deadline = time.monotonic() + within_s
    while not read():
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {why}"
        time.sleep(0.05)


def start_long(running: Any, job_id: str, *, progress: float = 10) -> None:
    """Submit a long job and wait until its progress reaches `progress`."""
    running.submit(job_id, config=LONG)
    for item in running.client.events(job_id):
        if item.kind == "progress" and item.data["progress"] >= progress:
            return
    raise AssertionError(f"{job_id} ended before it had made enough progress: {running.job(job_id)}")


def endings(running: Any, job_id: str) -> list[str]:
    """The status of each distinct terminal event that was received."""
    statuses = {
        item["headers"]["webhook-id"]: item["payload"]["status"]
        for item in running.inbox(job_id)
        if item["payload"]["status"] != "processing"
    }
    return list(statuses.values())


def assert_completed_once(running: Any, job_id: str, *, attempts: int, within_s: float = 45) -> None:
    job = running.wait_done(job_id, within_s=within_s)
    assert (job["status"], job["attempt"]) == ("completed", attempts), job
    until(lambda: endings(running, job_id) == ["completed"], why=f"one ending of {job_id}")


def burst_endings(running: Any) -> list[tuple[str, str]]:
    """Job and status of every received terminal callback of the burst."""
    received = [(item["payload"]["job_id"], item["payload"]["status"]) for item in running.inbox()]
    return [one for one in received if one[0].startswith("burst") and one[1] != "processing"]


def test_two_hundred_submissions_at_once_are_two_hundred_jobs(running: Any) -> None:
    """None is lost, none runs twice, and they start in the order of acceptance."""
    accepted: dict[str, tuple[float, float]] = {}

    def submit(number: int) -> None:
        sent_at = time.time()
        running.submit(f"burst{number}", config=SHORT)
        accepted[f"burst{number}"] = (sent_at, time.time())

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(submit, range(200)))
    assert running.post("/jobs", running.payload("burst0", config=SHORT)).status_code == 200
    until(lambda: len(burst_endings(running)) >= 200, within_s=90, why="200 terminal callbacks")
    assert sorted(burst_endings(running)) == sorted((name, "completed") for name in accepted)
    started = {name: running.record(name).claimed_at for name in accepted}
    latest_sent_at = 0.0
    for name in sorted(accepted, key=lambda name: started[name]):
        sent_at, accepted_at = accepted[name]
        assert accepted_at > latest_sent_at, f"a job submitted after {name} was accepted started before it"
        latest_sent_at = max(latest_sent_at, sent_at)


@pytest.mark.parametrize("victim", ["child", "parent"])
def test_the_job_of_a_killed_worker_runs_again(running: Any, victim: str) -> None:
    """It runs on the restarted worker, and one terminal callback is sent."""
    start_long(running, f"killed-{victim}")
    parent = running.pid_of("sdxl")
    child = running.pool_child()
    os.kill(child if victim == "child" else parent, signal.SIGKILL)
    assert_completed_once(running, f"killed-{victim}", attempts=2)


def test_a_message_that_dies_with_its_worker_is_published_again(running: Any) -> None:
    """The broker keeps no list of messages that are not acknowledged: the ledger has the job, and a sweep
    publishes it."""
    broker = running.ledger._connection.client
    parent = running.pid_of("sdxl")
    psutil.Process(running.pool_child()).suspend()
    running.submit("unclaimed", config=SHORT)
    until(lambda: not broker.exists("ourvidz:broker:sdxl_queue\x06\x166"), why="the message was not taken")
    os.kill(parent, signal.SIGKILL)
    assert not broker.exists("ourvidz:broker:unacked")
    assert_completed_once(running, "unclaimed", attempts=1)


def test_a_restart_of_redis_loses_no_job(running: Any) -> None:
    """The worker continues to generate and commits when Redis is reachable again."""
    start_long(running, "server")
    running.kill("redis")
    assert_completed_once(running, "server", attempts=1)


def test_a_worker_that_lost_its_lease_commits_nothing(running: Any) -> None:
    """A suspended worker resumes after another attempt has a newer fence."""
    start_long(running, "frozen")
    child = psutil.Process(running.pool_child())
    child.suspend()
    until(lambda: running.record("frozen").status == "queued", within_s=40, why="the lease to end")
    fence = running.record("frozen").fence
    child.resume()
    assert_completed_once(running, "frozen", attempts=2)
    assert running.record("frozen").fence > fence


def test_a_receiver_that_was_down_gets_its_callback_later(running: Any, receiver: Receiver) -> None:
    """The receiver is unreachable for ten seconds."""
    receiver.close()
    running.submit("down", config=SHORT, callback_url=receiver.url)
    assert running.wait_done("down")["status"] == "completed"
    time.sleep(10)  # the outage itself
    receiver.open()
    assert receiver.wait_for("down", "completed", within_s=30) <= 30
    assert [one[1] for one in receiver.received if one[0] == "down"] == ["completed"]


def test_a_receiver_that_never_responds_delays_no_other(
    running: Any, receiver: Receiver, other_receiver: Receiver
) -> None:
    """It uses only the deliveries of its own host; jobs and other receivers are not affected."""
    receiver.close()
    receiver.silent.set()
    receiver.open()
    try:
        for number in range(20):
            running.submit(f"silent{number}", config=SHORT, callback_url=receiver.url)
        running.submit("beside", config=SHORT, callback_url=other_receiver.url)
        other_receiver.wait_for("beside", "completed", within_s=20)
    finally:
        receiver.silent.clear()
        receiver.close()
        receiver.open()
    for number in range(20):
        receiver.wait_for(f"silent{number}", "completed", within_s=60)


@contextmanager
def proxy(port: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A TCP proxy to a local port: yields its own port, and a function that closes every connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    pairs: list[tuple[socket.socket, socket.socket]] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            return
        finally:
            cut((source, sink))

    def cut(pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def serve() -> None:
        while True:
            try:
                inside, _ = listener.accept()
                outside = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            pairs.append((inside, outside))
            threading.Thread(target=pump, args=(inside, outside), daemon=True).start()
            threading.Thread(target=pump, args=(outside, inside), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], lambda: [cut(pair) for pair in list(pairs)] and None
    finally:
        listener.close()
        for pair in pairs:
            cut(pair)


@contextmanager
def second_shim(running: Any, redis_url: str) -> Iterator[str]:
    """Another shim of the same stack, with this URL of Redis; yields the shim's URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(
        OURVIDZ_REDIS_URL=redis_url,
        OURVIDZ_PORTS=str(port),
        OURVIDZ_STATE_DIR=str(running.state_dir),
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    command = [sys.executable, "-m", "ourvidz.cli.main", "worker", "web"]
    process = subprocess.Popen(command, env=env, cwd=running.state_dir)
    url = f"http://127.0.0.1:{port}"

    def is_live() -> bool:
        try:
            return requests.get(f"{url}/health/live", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        until(is_live, why="the second shim")
        yield url
    finally:
        process.terminate()
        process.wait(15)


def test_broken_broker_connections_lose_no_submission(running: Any) -> None:
    """Every accepted job runs, also if its message was lost."""
    port = int(running.redis_url.rsplit(":", 1)[1].split("/")[0])
    names = [f"cut{number}" for number in range(50)]
    with (
        proxy(port) as (proxy_port, close_connections),
        second_shim(running, running.redis_url.replace(f":{port}/", f":{proxy_port}/")) as shim,
    ):
        finished = threading.Event()

        def keep_closing() -> None:
            while not finished.wait(0.15):
                close_connections()

        closer = threading.Thread(target=keep_closing)
        closer.start()
        try:
            for name in names:
                job = {"id": name, "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "cut"}
                answer = requests.post(f"{shim}/jobs", json=job | {"config": SHORT}, timeout=60)
                assert answer.status_code in (200, 202), answer.text
        finally:
            finished.set()
            closer.join()
    for name in names:
        job = running.wait_done(name, within_s=60)
        assert (job["status"], job["attempt"]) == ("completed", 1), job
    until(
        lambda: all(endings(running, name) == ["completed"] for name in names),
        why="one ending each",
        within_s=30,
    )


def test_a_job_that_hangs_beyond_its_hard_limit_is_stopped(
    stacks: Callable[..., Any], tmp_path: Path
) -> None:
    """The job reaches no step boundary, so the worker's parent kills the pool child; the worker continues."""
    env = {**MODELS, "OURVIDZ_TIME_LIMITS_S": '{"sdxl_image_fast": 2}', "OURVIDZ_MODEL_LOAD_S": "1"}
    with stacks(tmp_path, env=env) as running:
        start_long(running, "hanging", progress=1)
        psutil.Process(running.pool_child()).suspend()
        job = running.wait_done("hanging", within_s=30)
        assert (job["status"], job["error"]["code"]) == ("failed", "TIMEOUT_ERROR"), job
        assert "was stopped" in job["error"]["message"]
        until(lambda: endings(running, "hanging") == ["failed"], why="the callback")
        running.submit("next", config=SHORT)
        assert running.wait_done("next")["status"] == "completed"
