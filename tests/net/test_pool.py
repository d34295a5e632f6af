"""Kept connections: reuse, deadlines, and servers that close them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ourvidz.net.client import HttpClient, HttpResponse, RequestFailure
from ourvidz.net.connector import Deadline
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.pool import ConnectionPool
from ourvidz.net.transport import RequestError
from ourvidz.net.urls import HttpUrl, parse_http_url

PATIENCE_S = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Answer = Callable[["Server", socket.socket, int], bool]
"""Answers the request of a number on its connection, from 1 on. Returns whether to read another one."""


def answer_ok(_server: Server, connection: socket.socket, _number: int) -> bool:
    connection.sendall(OK)
    return True


@dataclass
class Server:
    """A server that keeps its connections open; counts them and the requests on each."""

    answer: Answer = answer_ok
    requests: list[int] = field(default_factory=list)
    """Requests by connection."""
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when a connection has ended."""

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/callback"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def hang_up(self) -> None:
        """Close the idle connections, as a server does after its keep-alive time."""
        for connection in self._open:
            connection.shutdown(socket.SHUT_RDWR)
        assert self.closed.wait(PATIENCE_S)

    def stop(self) -> None:
        self.answer = lambda *_: False
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self.requests.append(0)
            index = len(self.requests) - 1
            threading.Thread(target=self._converse, args=(connection, index), daemon=True).start()

    def _converse(self, connection: socket.socket, index: int) -> None:
        with connection:
            try:
                while self._read(connection):
                    self.requests[index] += 1
                    if not self.answer(self, connection, self.requests[index]):
                        break
            except OSError:
                self.closed.set()
            self._open.remove(connection)
        self.closed.set()

    @staticmethod
    def _read(connection: socket.socket) -> bool:
        request = b""
        while not request.endswith(b"{}"):
            more = connection.recv(1 << 16)
            if not more:
                return False
            request += more
        return True


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that answers every request with 200."""
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def client() -> HttpClient:
    """A client that keeps its connections."""
    return HttpClient(timeout_s=PATIENCE_S, keep_alive=True)


def status(result: HttpResponse | RequestFailure) -> int:
    assert isinstance(result, HttpResponse), result
    return result.status


def post(client: HttpClient, url: str) -> HttpResponse | RequestFailure:
    return client.post(url, body=b"{}", headers={})


def parsed(url: str) -> HttpUrl:
    found = parse_http_url(url)
    assert found is not None
    return found


def send(pool: ConnectionPool, url: str) -> None:
    deadline = Deadline.after(PATIENCE_S)
    with pool.open_response("POST", parsed(url), headers={}, body=b"{}", deadline=deadline) as response:
        assert response.read_start(100) == b"{}"


def test_requests_share_a_connection(server: Server, client: HttpClient) -> None:
    """A connection costs a name look-up, a check of its addresses and a TLS handshake."""
    assert [status(post(client, server.url)) for _ in range(3)] == [200] * 3
    assert server.requests == [3]


def test_a_refusal_is_read_and_the_connection_kept(server: Server, client: HttpClient) -> None:
    """A receiver that answers 429 is called again soon."""

    def answer(_server: Server, connection: socket.socket, number: int) -> bool:
        connection.sendall(b"HTTP/1.1 429 Slow\r\nContent-Length: 4\r\n\r\nwait" if number == 1 else OK)
        return True

    server.answer = answer
    assert [status(post(client, server.url)) for _ in range(2)] == [429, 200]
    assert server.requests == [2]


def test_requests_at_the_same_time_have_connections_of_their_own(server: Server, client: HttpClient) -> None:
    """HTTP/1.1 answers one request after the other: a slow one would delay the next."""
    both = threading.Barrier(2)

    def answer(_server: Server, connection: socket.socket, _number: int) -> bool:
        both.wait(PATIENCE_S)
        connection.sendall(OK)
        return True

    server.answer = answer
    threads = [threading.Thread(target=post, args=(client, server.url)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert server.requests == [1, 1]


def test_an_answer_in_two_segments_is_not_waited_for(server: Server, client: HttpClient) -> None:
    """A server that writes head and body apart sends the body when the head is acknowledged; by default the
    system acknowledges it after 40 ms."""

    def answer(_server: Server, connection: socket.socket, _number: int) -> bool:
        connection.sendall(OK[:-2])
        connection.sendall(OK[-2:])
        return True

    server.answer = answer
    started = time.monotonic()
    assert {status(post(client, server.url)) for _ in range(100)} == {200}
    assert time.monotonic() - started < 2.5, "100 times 40 ms"
    assert server.requests == [100]


def test_a_connection_that_the_server_has_closed_is_replaced(server: Server, client: HttpClient) -> None:
    """Servers close idle connections after some seconds; a delivery is not charged for that."""
    assert status(post(client, server.url)) == 200
    server.hang_up()
    assert status(post(client, server.url)) == 200
    assert server.requests == [1, 1]


def test_a_request_on_a_connection_that_ends_without_an_answer_is_sent_once_more(
    server: Server, client: HttpClient
) -> None:
    """The server closed the connection while the request was on its way: nothing was received."""

    def answer(_server: Server, connection: socket.socket, number: int) -> bool:
        if number == 2:
            return False
        connection.sendall(OK)
        return True

    server.answer = answer
    assert [status(post(client, server.url)) for _ in range(2)] == [200, 200]
    assert server.requests == [2, 1]


def test_a_request_that_must_not_be_repeated_is_sent_once(server: Server) -> None:
    """The server may have carried it out before its connection broke: the caller looks first."""
    server.answer = lambda _server, connection, number: number == 1 and not connection.sendall(OK)
    pool = ConnectionPool()
    send(pool, server.url)
    options = {"headers": {}, "body": b"{}", "deadline": Deadline.after(PATIENCE_S)}
    with (
        pytest.raises(RequestError),
        pool.open_response("POST", parsed(server.url), resend=False, **options),
    ):
        pass
    assert server.requests == [2]


def test_a_request_is_not_sent_again_after_a_part_of_its_answer(server: Server, client: HttpClient) -> None:
    """The server has the request: only the receiver's idempotency key may repeat it, later."""

    def answer(_server: Server, connection: socket.socket, number: int) -> bool:
        connection.sendall(OK if number == 1 else b"HTTP/1.1 2")
        return number == 1

    server.answer = answer
    assert status(post(client, server.url)) == 200
    assert post(client, server.url) == RequestFailure("the connection failed")
    assert server.requests == [2]


def test_a_request_on_a_new_connection_is_not_sent_again(server: Server, client: HttpClient) -> None:
    """A server that accepts and closes is down; the retry schedule decides when it is called again."""
    server.answer = lambda *_: False
    assert post(client, server.url) == RequestFailure("the connection failed")
    assert server.requests == [1]


def test_each_request_has_a_deadline_of_its_own(server: Server) -> None:
    """A request on a kept connection ends by its own deadline, not by that of the one before."""
    released = threading.Event()

    def answer(_server: Server, connection: socket.socket, number: int) -> bool:
        if number == 2:
            released.wait(PATIENCE_S)
        connection.sendall(OK)
        return True

    server.answer = answer
    pool = ConnectionPool()
    send(pool, server.url)
    late = Deadline.after(0.2)
    with (
        pytest.raises(RequestError, match="no answer in time"),
        pool.open_response("POST", parsed(server.url), headers={}, body=b"{}", deadline=late),
    ):
        pass
    released.set()
    assert server.requests == [2]


def test_a_response_that_is_not_read_to_its_end_ends_the_connection(
    server: Server, client: HttpClient
) -> None:
    """The rest of its body would be taken for the answer to the next request."""

    def answer(_server: Server, connection: socket.socket, number: int) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))
        return True

    server.answer = answer
    assert [status(post(client, server.url)) for _ in range(2)] == [200, 200]
    assert server.requests == [1, 1]


def test_a_connection_is_used_for_a_limited_time(server: Server) -> None:
    """A receiver that moved to another address must be found there, and that address be checked."""
    pool = ConnectionPool(max_age_s=0.0)
    send(pool, server.url)
    send(pool, server.url)
    assert server.requests == [1, 1]


def test_an_idle_connection_is_closed_in_time(server: Server) -> None:
    """A connection that was idle for long is likely to break just when the next request is on it."""
    pool = ConnectionPool(max_idle_s=0.0)
    send(pool, server.url)
    send(pool, server.url)
    assert server.requests == [1, 1]


def test_the_address_is_checked_when_a_connection_is_opened(server: Server) -> None:
    """The connection stays with the address that was checked, whatever the name server answers later."""
    answers = ["127.0.0.1", "169.254.169.254"]

    def resolver(_name: str, port: int, *_: object) -> list[tuple[object, ...]]:
        address = answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    policy = EgressPolicy([f"receiver.example:{server.port}"], resolver=resolver)  # type: ignore[arg-type]
    client = HttpClient(timeout_s=PATIENCE_S, connector=policy, keep_alive=True)
    url = f"http://receiver.example:{server.port}/callback"
    assert [status(post(client, url)) for _ in range(2)] == [200, 200]
    assert answers == ["169.254.169.254"]
    server.hang_up()
    assert post(client, url) == RequestFailure("the host may not be called")


def test_idle_connections_can_be_closed(server: Server) -> None:
    """A process that stops leaves no connections open."""
    pool = ConnectionPool()
    send(pool, server.url)
    pool.close()
    assert server.closed.wait(PATIENCE_S)
