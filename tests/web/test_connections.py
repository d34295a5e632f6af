"""Connections of a shim: silent, slow and too many clients change nothing for others."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests
import uvicorn
from starlette.types import Receive, Scope, Send

from ourvidz.web.connections import HEADER_BYTES, PROBES, ConnectionBudget, Connections, limited_protocol
from tests.web.conftest import free_port, get

pytestmark = pytest.mark.system

HALF_HEADER = b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le"
HALF_BODY = b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class EchoApp:
    """Answers each request once its body has arrived; `GET /held` is answered when the test says so."""

    def __init__(self) -> None:
        self.held = 0
        self.release = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body"):
                break
        if scope["path"] == "/held":
            self.held += 1
            await self.release.wait()
        size = 64 << 20 if scope["path"] == "/large" else 2
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]}
        )
        await send({"type": "http.response.body", "body": b"o" * size})


class Served:
    """An application on a port, with limits on its connections."""

    def __init__(self, most: int, timeout_s: float) -> None:
        self.app = EchoApp()
        self.limits = Connections(most, header_timeout_s=timeout_s, body_timeout_s=timeout_s)
        config = uvicorn.Config(
            self.app, port=0, lifespan="off", log_config=None, http=limited_protocol(self.limits), ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._server.server_state.connections)

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Wait for something that the server does."""
        ends = time.monotonic() + 20
        while not is_true():
            assert time.monotonic() < ends
            self._thread.join(0.005)

    @contextmanager
    def client(self, data: bytes = b"") -> Iterator[socket.socket]:
        """A connection on which `data` was sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            client.sendall(data)
            yield client


def answer(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def status(client: socket.socket) -> int:
    """The status of the next response."""
    return int(client.recv(65536).split(b" ", 2)[1])


@pytest.mark.parametrize("sent", [b"", HALF_HEADER, HALF_BODY])
def test_the_client_that_waits_longest_gives_way(sent: bytes) -> None:
    """At the limit a new connection is served at once."""
    with Served(most=10, timeout_s=60) as server, ExitStack() as clients:
        silent = [clients.enter_context(server.client(sent)) for _ in range(30)]
        with server.client(LIVE) as client:
            assert status(client) == 200
        assert answer(silent[0]) == b""


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", b""), (HALF_HEADER, b"408"), (HALF_BODY, b"408"), (LIVE + HALF_HEADER, b"408")],
)
def test_a_slow_client_is_cut_off(sent: bytes, answered: bytes) -> None:
    """A silent one without an answer: browsers open connections in advance."""
    with Served(most=10, timeout_s=0.2) as server, server.client(sent) as client:
        received = answer(client)
        assert answered in received
        assert received.startswith(b"HTTP/1.1 200") == sent.startswith(LIVE)


def test_dripping_bytes_prolong_nothing() -> None:
    """The time is for the whole header."""
    with Served(most=10, timeout_s=0.3) as server, server.client(b"GET / HTTP/1.1\r\n") as client:
        client.settimeout(0.02)
        for _ in range(200):
            try:
                client.sendall(b"X: y\r\n")
                if client.recv(100).startswith(b"HTTP/1.1 408"):
                    break
            except TimeoutError:
                continue
        else:
            pytest.fail("the client was never cut off")


def test_a_header_has_a_limit_in_bytes() -> None:
    """It is kept in memory until it is complete."""
    with Served(most=10, timeout_s=60) as server, server.client(b"GET / HTTP/1.1\r\nX: ") as client:
        client.sendall(b"y" * (HEADER_BYTES + 1))
        assert b" 431 " in answer(client)


def test_a_client_that_does_not_read_is_cut_off() -> None:
    """Its response would be kept in memory for ever."""
    request = LIVE.replace(b"/health/live", b"/large")
    with Served(most=10, timeout_s=0.3) as server, server.client(request) as client:
        assert status(client) == 200
        server.wait_until(lambda: not server.connections)


def test_requests_that_are_answered_are_never_cut_and_probes_still_come_through() -> None:
    """When every connection is busy, others are told to come back."""
    held = LIVE.replace(b"/health/live", b"/held")
    with Served(most=5, timeout_s=60) as server, ExitStack() as clients:
        busy = [clients.enter_context(server.client(held)) for _ in range(5)]
        server.wait_until(lambda: server.app.held == 5)
        for _ in range(PROBES + 2):
            clients.enter_context(server.client())
        with server.client(LIVE) as probe:
            assert status(probe) == 200
        with server.client(LIVE.replace(b"/health/live", b"/jobs")) as other:
            refused = answer(other)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 5" in refused
            assert b"CAPACITY_EXCEEDED" in refused
        server._server.servers[0].get_loop().call_soon_threadsafe(server.app.release.set)
        assert [status(client) for client in busy] == [200] * 5


def test_a_kept_connection_serves_many_requests() -> None:
    """Also with requests that are sent before the response to the last one."""
    with Served(most=3, timeout_s=60) as server, server.client(LIVE * 3) as client:
        received = b""
        while received.count(b"HTTP/1.1 200") < 3:
            received += client.recv(65536)
        client.sendall(LIVE)
        assert status(client) == 200
        server.wait_until(lambda: len(server.limits.waiting) == 1)


@pytest.mark.parametrize(
    ("files", "wanted"), [(64, None), (256, None), (1024, None), (65536, None), (256, 20)]
)
def test_the_budget_leaves_descriptors_for_the_rest(files: int, wanted: int | None) -> None:
    """What arrives in one moment counts too: it is accepted before anything can give way."""
    budget = ConnectionBudget.of(files, wanted)
    assert 1 <= budget.connections <= (wanted or files)
    assert budget.connections + PROBES + budget.backlog <= files - min(files // 4, 128)


@pytest.mark.system
def test_hundreds_of_silent_clients_change_nothing_under_a_low_limit_of_files(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    """300 connections, silent or half sent, under `ulimit -n 256`: jobs, reads and probes are served."""
    port = free_port()
    process = start(open_files=256, OURVIDZ_PORTS=str(port))
    get(port, "/health/live", process)
    url = f"http://127.0.0.1:{port}"
    job: dict[str, Any] = {"type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "me"}
    with ExitStack() as clients:
        for number in range(300):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            client.sendall((b"", HALF_HEADER, HALF_BODY)[number % 3])
            if number % 30 == 29:
                assert requests.get(f"{url}/health/live", timeout=5).status_code == 200
                posted = requests.post(f"{url}/jobs", json={**job, "id": f"j{number}"}, timeout=5)
                assert posted.status_code == 202, posted.text
                assert requests.get(f"{url}/jobs/j{number}", timeout=5).json()["status"] == "queued"
    assert process.poll() is None
