"""The shim as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import requests

from ourvidz.errors import SettingsError
from ourvidz.settings import load_settings
from ourvidz.web import serve
from tests.web.conftest import free_port, get

Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.system
def test_one_process_serves_every_port_and_stops_at_sigterm(start: Start) -> None:
    """Existing callers use five ports."""
    ports = [free_port(), free_port()]
    process = start(OURVIDZ_PORTS=",".join(map(str, ports)))
    for port in ports:
        assert get(port, "/health/live", process).json() == {"status": "alive"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) in (0, -signal.SIGTERM)


@pytest.mark.system
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


@pytest.mark.system
def test_open_event_streams_end_cleanly_at_a_stop_and_are_resumed(start: Start) -> None:
    """Browsers keep streams open for hours. They come back after the time in the first line, with the id of
    the last event, and miss none."""
    job = {"id": "job-1", "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "me"}
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as opened:
        port = listening.getsockname()[1]
        base = f"http://127.0.0.1:{port}"
        first = start(fds=(listening.fileno(),))
        get(port, "/health/live", first)
        assert requests.post(f"{base}/jobs", json=job, timeout=10).status_code == 202
        streams = []
        for _ in range(20):
            response = requests.get(f"{base}/jobs/job-1/events", stream=True, timeout=10)
            lines = opened.enter_context(response).iter_lines(chunk_size=1)
            assert next(lines) == b"retry: 2000"
            streams.append((lines, next(line for line in lines if line.startswith(b"id: "))))
        first.send_signal(signal.SIGTERM)
        for lines, _ in streams:
            # An error if the response ends before its end.
            assert not any(line == b"event: done" for line in lines)
        _, log = first.communicate(timeout=20)
        assert first.returncode in (0, -signal.SIGTERM)
        assert "exceeded" not in log, "no stream was cancelled after a timeout"
        assert "events_cut" not in log, "a stop is no failure of a stream"

        second = start(fds=(listening.fileno(),))
        get(port, "/health/live", second)
        assert requests.post(f"{base}/jobs/job-1/cancel", timeout=10).status_code == 200
        for _, last in streams:
            headers = {"Last-Event-ID": last.decode().removeprefix("id: ")}
            rest = requests.get(f"{base}/jobs/job-1/events", headers=headers, timeout=10).text
            events = [line for line in rest.splitlines() if line.startswith("event: ")]
            assert events == ["event: done"]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a shim in this process that refuses its settings, given by variable name; returns the message."""

    def run(*, fds: tuple[int, ...] = (), **variables: str) -> str:
        monkeypatch.setattr(serve.log, "configure", lambda *_: None)
        with pytest.raises(SettingsError) as refused:
            serve.run(load_settings(_env_file=None, **variables), fds)
        return refused.value.message

    return run


@pytest.mark.parametrize("inherited", [False, True])
def test_without_keys_a_public_address_is_refused(refusal: Callable[..., str], inherited: bool) -> None:
    """The message, which the command prints as its only line, names the setting."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        message = refusal(fds=(os.dup(listening.fileno()),)) if inherited else refusal(OURVIDZ_HOST="0.0.0.0")
    assert message.startswith("OURVIDZ_HOST: without OURVIDZ_API_KEYS")


def test_a_taken_port_is_one_clear_line(refusal: Callable[..., str]) -> None:
    """The line names the setting and the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(OURVIDZ_PORTS=str(port))
    assert message == f"OURVIDZ_PORTS: cannot listen on 127.0.0.1:{port}: Address already in use"
