"""Each call sends one request and ends by its deadline, for any peer behaviour."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ourvidz.net.client import MAX_BODY_BYTES, HttpClient, HttpResponse, RequestFailure

TIMEOUT_S = 0.5
SLACK_S = 3.0
PATIENCE_S = 30.0

Script = Callable[[socket.socket], None]


class Peer:
    """A minimal server: runs a script per connection and records the requests."""

    def __init__(self, script: Script) -> None:
        self.requests: list[bytes] = []
        self.gone = threading.Event()
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/callback"
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def close(self) -> None:
        self.gone.set()
        # Closing alone does not wake the thread that waits in accept.
        with socket.create_connection(("127.0.0.1", self.port)):
            self._server.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self.gone.is_set():
                connection.close()
                return
            threading.Thread(target=self._handle_connection, args=(connection,), daemon=True).start()

    def _handle_connection(self, connection: socket.socket) -> None:
        with connection:
            request = b""
            while not request.endswith(b"{}") and (more := connection.recv(1 << 16)):
                request += more
                if not request.startswith(b"POST"):
                    break
            self.requests.append(request)
            try:
                self._script(connection)
            except OSError:
                self.gone.wait(0)

    def drip(self, data: bytes) -> Script:
        """A script that sends one byte every 50 ms until the client leaves."""

        def script(connection: socket.socket) -> None:
            for byte in data * 1000:
                connection.sendall(bytes([byte]))
                if self.gone.wait(0.05):
                    return

        return script


@pytest.fixture
def peer() -> Iterator[Callable[[Script], Peer]]:
    """Return a function that starts a `Peer` with a script."""
    peers: list[Peer] = []

    def start(script: Script) -> Peer:
        peers.append(Peer(script))
        return peers[-1]

    yield start
    for one in peers:
        one.close()


def sends(answer: bytes) -> Script:
    return lambda connection: connection.sendall(answer)


def post(url: str, *, timeout_s: float = PATIENCE_S, **headers: str) -> HttpResponse | RequestFailure:
    return HttpClient(timeout_s=timeout_s).post(url, body=b"{}", headers=headers)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_a_response_has_status_headers_and_body(peer: Callable[[Script], Peer]) -> None:
    """The body is returned as bytes, whatever its content type."""
    result = post(peer(sends(b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}")).url)
    assert isinstance(result, HttpResponse)
    assert (result.status, result.headers["retry-after"], result.body) == (429, "7", b"{}")


def test_no_netrc_entry_or_proxy_of_the_environment_is_used(
    peer: Callable[[Script], Peer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A .netrc entry would replace the Authorization header, and a proxy would see it."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server = peer(sends(OK))
    assert isinstance(post(server.url, Authorization="Bearer key"), HttpResponse)
    sent = server.requests[0].decode()
    assert "Authorization: Bearer key\r\n" in sent
    assert sent.endswith("\r\n\r\n{}")
    assert "python" not in sent


def test_a_redirect_is_returned_and_not_followed(peer: Callable[[Script], Peer]) -> None:
    """Following it would send the signed body to a host that the egress policy has not checked."""
    target = peer(sends(OK))
    server = peer(sends(f"HTTP/1.1 307 Go\r\nLocation: {target.url}\r\nContent-Length: 0\r\n\r\n".encode()))
    result = post(server.url)
    assert isinstance(result, HttpResponse)
    assert result.status == 307
    assert target.requests == []


def test_cookies_are_not_kept(peer: Callable[[Script], Peer]) -> None:
    """A response does not change the next request."""
    server = peer(sends(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"))
    client = HttpClient(timeout_s=PATIENCE_S)
    for _ in range(2):
        assert isinstance(client.post(server.url, body=b"{}", headers={}), HttpResponse)
    assert len(server.requests) == 2, server.requests
    assert b"Cookie" not in server.requests[1]


def test_every_request_uses_a_new_connection(peer: Callable[[Script], Peer]) -> None:
    """No keep-alive: a reused connection may be closed by the peer during the next request."""
    first_left = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(OK)
        if connection.recv(1) == b"":
            first_left.set()

    server = peer(script)
    client = HttpClient(timeout_s=PATIENCE_S)
    assert isinstance(client.post(server.url, body=b"{}", headers={}), HttpResponse)
    assert first_left.wait(PATIENCE_S)
    assert isinstance(client.post(server.url, body=b"{}", headers={}), HttpResponse)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: "], ids=["status line", "header"])
def test_a_slow_response_ends_at_the_deadline(peer: Callable[[Script], Peer], start: bytes) -> None:
    """Single bytes at short intervals never exceed a read timeout, so a total deadline is needed."""

    def script(connection: socket.socket) -> None:
        connection.sendall(start)
        server.drip(b"H")(connection)

    server = peer(script)
    started = time.monotonic()
    assert post(server.url, timeout_s=TIMEOUT_S) == RequestFailure("no answer in time")
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S


def test_a_request_without_a_response_ends_at_the_deadline(peer: Callable[[Script], Peer]) -> None:
    """The peer accepts the connection and never responds."""

    def script(connection: socket.socket) -> None:
        server.gone.wait(10)

    server = peer(script)
    started = time.monotonic()
    assert post(server.url, timeout_s=TIMEOUT_S) == RequestFailure("no answer in time")
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S


def test_the_status_is_returned_even_if_the_body_never_ends(peer: Callable[[Script], Peer]) -> None:
    """The status decides; errors in the rest of the response are ignored."""

    def script(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        server.drip(b"x")(connection)

    server = peer(script)
    started = time.monotonic()
    result = post(server.url, timeout_s=TIMEOUT_S)
    assert isinstance(result, HttpResponse)
    assert result.status == 200
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S


def test_a_huge_body_is_not_read(peer: Callable[[Script], Peer]) -> None:
    """At most the size limit of the body is read."""
    server = peer(sends(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (4 << 20)))
    result = post(server.url)
    assert isinstance(result, HttpResponse)
    assert len(result.body) == MAX_BODY_BYTES


def test_a_refused_connection_is_a_request_failure() -> None:
    """`post` returns a `RequestFailure` and raises nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    assert post(f"http://127.0.0.1:{port}/") == RequestFailure("the connection failed")


def test_a_connection_closed_without_a_response_is_a_request_failure(peer: Callable[[Script], Peer]) -> None:
    """A receiver that restarts closes its connections."""
    assert post(peer(lambda connection: None).url) == RequestFailure("the connection failed")


def test_a_server_without_tls_is_a_request_failure(peer: Callable[[Script], Peer]) -> None:
    """An https URL is not requested in plain text."""
    server = peer(sends(OK))
    result = post(server.url.replace("http:", "https:"))
    assert result == RequestFailure("the TLS handshake failed")


@pytest.mark.parametrize("key", ["line\nbreak", "ключ"])
def test_the_failure_does_not_contain_an_invalid_header_value(
    peer: Callable[[Script], Peer], key: str
) -> None:
    """The library's error message contains the header value, which may be a service key."""
    result = post(peer(sends(OK)).url, Authorization=f"Bearer {key}")
    assert result == RequestFailure("a header value cannot be sent")


def test_a_failed_request_is_not_repeated(peer: Callable[[Script], Peer]) -> None:
    """The server may have processed the first request, so the caller decides whether to retry."""
    server = peer(lambda connection: None)
    assert isinstance(post(server.url), RequestFailure)
    assert len(server.requests) == 1


def test_an_invalid_url_is_a_request_failure() -> None:
    """A URL with another scheme, or one that cannot be parsed, raises no exception."""
    for url in ("ftp://example.com/", "https://user:pw@example.com/", "http://exa mple.com/"):
        assert post(url) == RequestFailure("the URL cannot be called")


def test_a_slow_name_server_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system resolver has no timeout of its own."""
    enough = threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        enough.wait(PATIENCE_S)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    started = time.monotonic()
    assert post("http://slow.example/", timeout_s=TIMEOUT_S) == RequestFailure("connecting took too long")
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S
    enough.set()


def test_a_request_body_that_is_not_read_ends_at_the_deadline(peer: Callable[[Script], Peer]) -> None:
    """One deadline covers all writes of a large request body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        started = time.monotonic()
        result = HttpClient(timeout_s=TIMEOUT_S).post(url, body=bytes(64 << 20), headers={})
        assert result == RequestFailure("no answer in time")
        assert time.monotonic() - started < TIMEOUT_S + SLACK_S
