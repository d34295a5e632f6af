"""The shim as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

START = "import json, sys; from ourvidz.settings import settings; from ourvidz.web.serve import run; " \
    "run(settings(), json.loads(sys.argv[1]))"  # fmt: skip

Start = Callable[..., subprocess.Popen[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str, process: subprocess.Popen[str]) -> requests.Response:
    """Read a path, as soon as the process listens."""
    until = time.monotonic() + 30
    while True:
        try:
            return requests.get(f"http://127.0.0.1:{port}{path}", timeout=5)
        except requests.ConnectionError:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path, redis_url: str) -> Iterator[Start]:
    """Start shim processes; settings by variable name."""
    started: list[subprocess.Popen[str]] = []

    def begin(*, fds: tuple[int, ...] = (), **variables: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OURVIDZ_")}
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(fds)],
            env={
                **kept, "PYTHONPATH": root, "OURVIDZ_REDIS_URL": redis_url,
                "OURVIDZ_STATE_DIR": str(tmp_path), **variables,
            },
            cwd=tmp_path,
            pass_fds=fds,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_one_process_serves_every_port_and_stops_at_sigterm(start: Start) -> None:
    """Existing callers use five ports."""
    ports = [free_port(), free_port()]
    process = start(OURVIDZ_PORTS=",".join(map(str, ports)))
    for port in ports:
        assert get(port, "/health/live", process).json() == {"status": "alive"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) in (0, -signal.SIGTERM)


def test_an_inherited_socket_accepts_connections_during_a_restart(start: Start) -> None:
    """A client that connects while the shim restarts waits and is served."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        first = start(fds=(listening.fileno(),))
        assert get(port, "/health/live", first).status_code == 200
        first.kill()
        first.wait()
        second = start(fds=(listening.fileno(),))
        assert requests.get(f"http://127.0.0.1:{port}/health/live", timeout=30).status_code == 200
        assert second.poll() is None


def test_an_open_event_stream_does_not_delay_the_stop(start: Start) -> None:
    """Browsers keep streams open for hours."""
    port = free_port()
    process = start(OURVIDZ_PORTS=str(port))
    get(port, "/health/live", process)
    base = f"http://127.0.0.1:{port}"
    job = {"id": "job-1", "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "me"}
    assert requests.post(f"{base}/jobs", json=job, timeout=10).status_code == 202
    with requests.get(f"{base}/jobs/job-1/events", stream=True, timeout=10) as stream:
        assert next(stream.iter_lines()) == b"retry: 2000"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("inherited", [False, True])
def test_without_keys_a_public_address_is_refused(start: Start, inherited: bool) -> None:
    """The process exits with one line that names the setting."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        process = start(fds=(listening.fileno(),)) if inherited else start(OURVIDZ_HOST="0.0.0.0")
        _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "OURVIDZ_HOST: without OURVIDZ_API_KEYS" in stderr


def test_a_taken_port_is_one_clear_line(start: Start) -> None:
    """The line names the setting and the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(OURVIDZ_PORTS=str(taken.getsockname()[1]))
        _, stderr = process.communicate(timeout=30)
    assert "OURVIDZ_PORTS: cannot listen on 127.0.0.1:" in stderr
