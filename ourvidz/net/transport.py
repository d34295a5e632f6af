"""One HTTP/1.1 request over one connection, under one deadline.

A read timeout bounds a single `recv`, so a peer that sends a byte now and then holds a thread for hours. Here
the network backend of httpcore2 gives every operation on the socket (connecting, the TLS handshake, each send
and each receive) only what is left of the time for the whole request.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar

import certifi
import httpcore2

from ourvidz.net.urls import HttpUrl

CONNECT_TIMEOUT_S = 5.0
"""How long each address of a host may take to connect."""

_DEFAULT_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "ourvidz",
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on the monotonic clock, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def remaining_s(self, at_most: float | None = None) -> float:
        """Seconds left, limited to `at_most`. Raises `TimeoutError` when none are left."""
        remaining = self.at - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        return remaining if at_most is None else min(at_most, remaining)


class EgressDenied(Exception):
    """The egress policy forbids this host. The message is for our log: it names addresses."""


class RequestError(Exception):
    """A request failed. `reason` is a phrase without addresses and header values: safe to show and store."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Connector(Protocol):
    """Opens TCP connections."""

    def connect(self, host: str, port: int, *, connect_timeout_s: float, deadline: Deadline) -> socket.socket:
        """Connect to `host` (a name, or an address without brackets) by the deadline, spending at most
        `connect_timeout_s` on each address. Raises `EgressDenied` if the host must not be called, `OSError`
        if no address accepts."""


class DirectConnector:
    """Connects to any host; implements `Connector`."""

    def connect(self, host: str, port: int, *, connect_timeout_s: float, deadline: Deadline) -> socket.socket:
        """Resolve the name and connect to the first of its addresses that accepts."""
        resolved = run_before(deadline, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        failure: OSError = ConnectionError("the name has no address")
        for family, kind, protocol, _name, address in resolved:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(deadline.remaining_s(connect_timeout_s))
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure


class StreamedResponse:
    """The head of a response whose body has not been read. Header names are lower case; the values of a
    repeated header are joined with commas."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response
        self.status = response.status
        self.headers = _header_map(response.headers)

    def iter_bytes(self) -> Iterator[bytes]:
        """Yield the body as it arrives, without content decoding, at most 64 KiB at a time. Raises
        `RequestError` if it ends early or the deadline passes."""
        try:
            yield from self._response.iter_stream()
        except httpcore2.TimeoutException as error:
            raise RequestError("no answer in time") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise RequestError("the answer broke off") from error

    def read_start(self, limit: int) -> bytes:
        """The first `limit` bytes of the body; fewer if it ends, breaks off or is late before that."""
        body = bytearray()
        try:
            for chunk in self.iter_bytes():
                body += chunk
                if len(body) >= limit:
                    break
        except RequestError:
            # The head has arrived, which is what the caller decides by.
            return bytes(body[:limit])
        return bytes(body[:limit])


@contextmanager
def open_response(
    method: str,
    url: HttpUrl,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    deadline: Deadline,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    connector: Connector | None = None,
) -> Iterator[StreamedResponse]:
    """Send one request on a new connection; yield the response when its head has arrived.

    The connection is closed on leaving the block. No redirect is followed, nothing is repeated, no cookie is
    kept, and the environment supplies neither proxies nor passwords. Raises `RequestError`.
    """
    backend = _DeadlineBackend(connector or DirectConnector(), connect_timeout_s, deadline)
    with ExitStack() as stack:
        try:
            target = _httpcore_url(url)
            connection = stack.enter_context(
                httpcore2.HTTPConnection(
                    origin=target.origin, ssl_context=tls_context(), network_backend=backend
                )
            )
            response = stack.enter_context(
                connection.stream(method, target, headers=_request_headers(url, headers), content=body)
            )
        except _FAILURES as error:
            raise RequestError(_reason(error)) from error
        yield StreamedResponse(response)


def run_before(deadline: Deadline, call: Callable[[], _T]) -> _T:
    """Run `call` in a thread and return its result. Raises what it raises, or `TimeoutError` at the deadline.

    `getaddrinfo` takes no time limit; a thread that it still holds then ends when the system's resolver gives
    up.
    """
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except Exception as error:  # noqa: BLE001  raised again in the waiting thread
            result.set_exception(error)

    threading.Thread(target=run, name="dns-lookup", daemon=True).start()
    return result.result(timeout=deadline.remaining_s())


class _TlsError(httpcore2.ConnectError):
    """The TLS handshake failed."""


class _DeadlineBackend(httpcore2.NetworkBackend):
    """Makes the connection of one request through a `Connector`."""

    def __init__(self, connector: Connector, connect_timeout_s: float, deadline: Deadline) -> None:
        self._connector = connector
        self._connect_timeout_s = connect_timeout_s
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  the deadline decides
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        """Connect through the `Connector`, by the connect timeout and the deadline of the request."""
        with _mapped(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            connected = self._connector.connect(
                host, port, connect_timeout_s=self._connect_timeout_s, deadline=self._deadline
            )
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _DeadlineStream(connected, self._deadline)


class _DeadlineStream(httpcore2.NetworkStream):
    """A connected socket whose operations share one deadline."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket = connected
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore2.ReadTimeout, httpcore2.ReadError):
            self._socket.settimeout(self._deadline.remaining_s(timeout))
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        unsent = memoryview(buffer)
        with _mapped(httpcore2.WriteTimeout, httpcore2.WriteError):
            while unsent:
                self._socket.settimeout(self._deadline.remaining_s(timeout))
                unsent = unsent[self._socket.send(unsent) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        # Certificates name hosts without the dot that ends an absolute name.
        name = (server_hostname or "").rstrip(".")
        try:
            with _mapped(httpcore2.ReadTimeout, _TlsError):
                self._socket.settimeout(self._deadline.remaining_s(timeout))
                secured = ssl_context.wrap_socket(self._socket, server_hostname=name)
        except BaseException:
            self.close()
            raise
        return _DeadlineStream(secured, self._deadline)


@contextmanager
def _mapped(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """Raise a timeout as `late` and any other socket error as `failed`."""
    try:
        yield
    except TimeoutError as error:
        raise late("the deadline has passed") from error
    except (OSError, ValueError) as error:
        raise failed(str(error)) from error


_FAILURES = (
    EgressDenied,
    UnicodeError,
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
)
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (EgressDenied, "the host may not be called"),
    (httpcore2.ConnectTimeout, "connecting took too long"),
    (httpcore2.TimeoutException, "no answer in time"),
    (_TlsError, "the TLS handshake failed"),
    (httpcore2.LocalProtocolError, "a header value cannot be sent"),
    (UnicodeError, "a header value cannot be sent"),
)


def _reason(error: Exception) -> str:
    # The libraries' own messages quote header values, and one of those is a secret.
    return next((text for kind, text in _REASONS if isinstance(error, kind)), "the connection failed")


def _httpcore_url(url: HttpUrl) -> httpcore2.URL:
    origin = url.origin
    return httpcore2.URL(
        scheme=origin.scheme, host=origin.host.strip("[]"), port=origin.port, target=url.target
    )


def _request_headers(url: HttpUrl, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers of a request with `Host` and our defaults, encoded."""
    names = {name.lower() for name in headers}
    merged = {name: value for name, value in _DEFAULT_HEADERS.items() if name.lower() not in names}
    default_port = {"http": 80, "https": 443}[url.origin.scheme]
    host = url.origin.host if url.origin.port == default_port else url.origin.netloc
    all_headers = {"Host": host, **merged, **headers}
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in all_headers.items()]


def _header_map(items: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Response headers by lower-case name; repeated ones are joined with commas."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in items:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


@cache
def tls_context() -> ssl.SSLContext:
    """Verifies certificates and host names against certifi's authorities; made once in a process."""
    return ssl.create_default_context(cafile=certifi.where())
