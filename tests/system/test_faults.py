"""What may die in the middle of a job, and what its caller sees of it: one job, one ending."""

from __future__ import annotations

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

LONG = {"steps": 100, "num_images": 3, "width": 128, "height": 128, "seed": 3}
"""Several seconds of work on two cores."""
SHORT = {"steps": 1, "width": 64, "height": 64, "seed": 1}


class Receiver:
    """A callback receiver on a port of its own that can be closed, or swallow connections."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.got: list[tuple[str, str, str]] = []
        self.arrived = threading.Condition()
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
                receiver.keep(body, self.headers["webhook-id"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the test's output readable."""

        ThreadingHTTPServer.allow_reuse_address = True
        self._closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._closed.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def wait_until_closed(self) -> None:
        self._closed.wait(60)

    def keep(self, body: bytes, event_id: str) -> None:
        told = requests.models.complexjson.loads(body)
        with self.arrived:
            self.got.append((told["job_id"], told["status"], event_id))
            self.arrived.notify_all()

    def wait_for(self, job_id: str, status: str, within_s: float) -> float:
        """Seconds until a callback with this status has come."""
        began = time.monotonic()
        with self.arrived:
            came = self.arrived.wait_for(
                lambda: any(one[:2] == (job_id, status) for one in self.got), timeout=within_s
            )
        assert came, f"{job_id}: no {status} within {within_s:g} s, only {self.got}"
        return time.monotonic() - began


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def other() -> Iterator[Receiver]:
    made = Receiver()
    made.open()
    yield made
    made.close()


@pytest.fixture(scope="module")
def house(
    stacks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, other: Receiver
) -> Iterator[Any]:
    """One stack for all faults: it must mend itself after each."""
    allowed = f"{receiver.host} {other.host}"
    with stacks(tmp_path_factory.mktemp("house"), env={"OURVIDZ_CALLBACK_ALLOW": allowed}) as running:
        yield running


def until(read: Callable[[], Any], *, why: str, within_s: float = 30) -> None:
    """Wait until `read` answers something true."""
    ends = time.monotonic() + within_s
    while not read():
        assert time.monotonic() < ends, f"waited {within_s:g} s for {why}"
        time.sleep(0.05)


def start_long(house: Any, job_id: str, *, progress: float = 10) -> None:
    """Submit a long job and wait until it is well under way."""
    house.submit(job_id, config=LONG)
    for item in house.client.events(job_id):
        if item.kind == "progress" and item.data["progress"] >= progress:
            return
    raise AssertionError(f"{job_id} ended before it could be disturbed: {house.job(job_id)}")


def endings(house: Any, job_id: str) -> list[str]:
    """The distinct terminal events that reached the receiver, by their ids."""
    told = {
        item["headers"]["webhook-id"]: item["payload"]["status"]
        for item in house.inbox(job_id)
        if item["payload"]["status"] != "processing"
    }
    return list(told.values())


def assert_completed_once(house: Any, job_id: str, *, attempts: int, within_s: float = 45) -> None:
    job = house.wait_done(job_id, within_s=within_s)
    assert (job["status"], job["attempt"]) == ("completed", attempts), job
    until(lambda: endings(house, job_id) == ["completed"], why=f"one ending of {job_id}")


def burst_endings(house: Any) -> list[tuple[str, str]]:
    """Job and status of every terminal callback of the burst that came in."""
    told = [(item["payload"]["job_id"], item["payload"]["status"]) for item in house.inbox()]
    return [one for one in told if one[0].startswith("burst") and one[1] != "processing"]


def test_two_hundred_submissions_at_once_are_two_hundred_jobs(house: Any) -> None:
    """None is lost, none runs twice, and who was accepted first starts first."""
    accepted: dict[str, tuple[float, float]] = {}

    def submit(number: int) -> None:
        asked = time.time()
        house.submit(f"burst{number}", config=SHORT)
        accepted[f"burst{number}"] = (asked, time.time())

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(submit, range(200)))
    assert house.post("/jobs", house.payload("burst0", config=SHORT)).status_code == 200
    until(lambda: len(burst_endings(house)) >= 200, within_s=90, why="200 terminal callbacks")
    assert sorted(burst_endings(house)) == sorted((name, "completed") for name in accepted)
    started = {name: house.record(name).claimed_at for name in accepted}
    latest_asked = 0.0
    for name in sorted(accepted, key=lambda name: started[name]):
        asked, answered = accepted[name]
        assert answered > latest_asked, f"a job submitted after {name} was accepted started before it"
        latest_asked = max(latest_asked, asked)


@pytest.mark.parametrize("victim", ["child", "parent"])
def test_a_killed_worker_loses_nothing(house: Any, victim: str) -> None:
    """The job runs again on the restarted worker, and its caller hears one ending."""
    start_long(house, f"killed-{victim}")
    parent = house.pid_of("sdxl")
    child = house.computing_child()
    os.kill(child if victim == "child" else parent, signal.SIGKILL)
    assert_completed_once(house, f"killed-{victim}", attempts=2)


def test_a_restarted_server_loses_nothing(house: Any) -> None:
    """The worker goes on computing, and commits when the server is back."""
    start_long(house, "server")
    house.kill("redis")
    assert_completed_once(house, "server", attempts=1)


def test_a_frozen_worker_changes_nothing_when_it_wakes(house: Any) -> None:
    """Its lease is over, its fence is lost: whatever it still holds is void."""
    start_long(house, "frozen")
    child = psutil.Process(house.computing_child())
    child.suspend()
    until(lambda: house.record("frozen").status == "queued", within_s=40, why="the lease to end")
    fence = house.record("frozen").fence
    child.resume()
    assert_completed_once(house, "frozen", attempts=2)
    assert house.record("frozen").fence > fence


def test_a_receiver_that_was_down_gets_its_callback(house: Any, receiver: Receiver) -> None:
    """Ten seconds of a restarting backend must cost no ending."""
    receiver.close()
    house.submit("down", config=SHORT, callback_url=receiver.url)
    assert house.wait_done("down")["status"] == "completed"
    time.sleep(10)  # the outage itself
    receiver.open()
    assert receiver.wait_for("down", "completed", within_s=30) <= 30
    assert [one[1] for one in receiver.got if one[0] == "down"] == ["completed"]


def test_a_receiver_that_never_answers_holds_up_nobody_else(
    house: Any, receiver: Receiver, other: Receiver
) -> None:
    """It takes its own lane's threads and no others; jobs and other callers go on."""
    receiver.close()
    receiver.silent.set()
    receiver.open()
    try:
        for number in range(20):
            house.submit(f"swallowed{number}", config=SHORT, callback_url=receiver.url)
        house.submit("beside", config=SHORT, callback_url=other.url)
        other.wait_for("beside", "completed", within_s=20)
    finally:
        receiver.silent.clear()
        receiver.close()
        receiver.open()
    for number in range(20):
        receiver.wait_for(f"swallowed{number}", "completed", within_s=60)


@contextmanager
def proxy(port: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A TCP proxy to a local port: its own port, and a function that cuts every connection."""
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
def second_shim(house: Any, redis_url: str) -> Iterator[str]:
    """Another shim of the same system that reaches its Redis by another way; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(
        OURVIDZ_REDIS_URL=redis_url,
        OURVIDZ_PORTS=str(port),
        OURVIDZ_STATE_DIR=str(house.state_dir),
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    command = [sys.executable, "-m", "ourvidz.cli.main", "worker", "web"]
    process = subprocess.Popen(command, env=env, cwd=house.state_dir)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return requests.get(f"{url}/health/live", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        until(answers, why="the second shim")
        yield url
    finally:
        process.terminate()
        process.wait(15)


def test_cut_broker_connections_lose_no_submission(house: Any) -> None:
    """Every job that got its 202 runs, also when its message was lost on the way."""
    port = int(house.redis_url.rsplit(":", 1)[1].split("/")[0])
    names = [f"cut{number}" for number in range(50)]
    with (
        proxy(port) as (through, cut),
        second_shim(house, house.redis_url.replace(f":{port}/", f":{through}/")) as shim,
    ):
        over = threading.Event()

        def cutting() -> None:
            while not over.wait(0.15):
                cut()

        cutter = threading.Thread(target=cutting)
        cutter.start()
        try:
            for name in names:
                job = {"id": name, "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "cut"}
                answer = requests.post(f"{shim}/jobs", json=job | {"config": SHORT}, timeout=60)
                assert answer.status_code in (200, 202), answer.text
        finally:
            over.set()
            cutter.join()
    for name in names:
        job = house.wait_done(name, within_s=60)
        assert (job["status"], job["attempt"]) == ("completed", 1), job
    until(
        lambda: all(endings(house, name) == ["completed"] for name in names),
        why="one ending each",
        within_s=30,
    )


def test_a_job_that_hangs_past_every_limit_is_stopped_from_outside(
    stacks: Callable[..., Any], tmp_path: Path
) -> None:
    """It hears no deadline at any step; the worker's parent ends it, and the worker goes on."""
    env = {"OURVIDZ_TIME_LIMITS_S": '{"sdxl_image_fast": 2}', "OURVIDZ_MODEL_LOAD_S": "1"}
    with stacks(tmp_path, env=env) as house:
        start_long(house, "hanging", progress=1)
        psutil.Process(house.computing_child()).suspend()
        job = house.wait_done("hanging", within_s=30)
        assert (job["status"], job["error"]["code"]) == ("failed", "TIMEOUT_ERROR"), job
        assert "was stopped" in job["error"]["message"]
        until(lambda: endings(house, "hanging") == ["failed"], why="the callback")
        house.submit("next", config=SHORT)
        assert house.wait_done("next")["status"] == "completed"
