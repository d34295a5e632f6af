"""HTTP/1.1 connections whose requests each have one deadline.

A read timeout bounds a single `recv`, so a peer that sends a byte now and then holds a thread for hours. Here
the network backend of httpcore2 gives every operation on the socket (connecting, the TLS handshake, each send
and each receive) only what is left of the time for the whole request.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import certifi
import httpcore2

from ourvidz.net.connector import CONNECT_TIMEOUT_S, Connector, Deadline, DirectConnector, EgressDenied
from ourvidz.net.urls import HttpUrl, Origin

_DEFAULT_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": "ourvidz",
}


class RequestError(Exception):
    """A request failed. `reason` is a phrase without addresses and header values: safe to show and store.
    `transient`: the network or the server failed, so the same request may succeed later."""

    def __init__(self, reason: str, *, transient: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transient = transient


class StaleConnection(RequestError):
    """A kept connection ended before any byte of the response to its next request arrived."""


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

    def close(self) -> None:
        """End the response; what is unread of it ends the connection."""
        self._response.close()

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


class HttpConnection:
    """One connection to an origin, opened by its first request. For one request at a time, each with a
    deadline of its own.

    `keep_alive`: whether further requests may follow the first. The address is checked by the `connector`
    when the connection is opened; later requests go to the same address.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        connector: Connector | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        keep_alive: bool = False,
    ) -> None:
        self.origin = origin
        self.opened_at = time.monotonic()
        self._keep_alive = keep_alive
        self._requests = 0
        self._exchange = _Exchange()
        backend = _DeadlineBackend(connector or DirectConnector(), connect_timeout_s, self._exchange)
        self._connection = httpcore2.HTTPConnection(
            origin=_httpcore_url(HttpUrl(origin, "/")).origin,
            ssl_context=tls_context(),
            network_backend=backend,
        )

    def send(
        self,
        method: str,
        url: HttpUrl,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        deadline: Deadline,
    ) -> StreamedResponse:
        """Send one request; returns the response when its head has arrived.

        No redirect is followed, nothing is repeated, no cookie is kept, and the environment supplies neither
        proxies nor passwords. Raises `RequestError`, and `StaleConnection` for a kept connection that the
        server has closed.
        """
        self._requests += 1
        self._exchange.deadline, self._exchange.received = deadline, False
        own = {} if self._keep_alive else {"Connection": "close"}
        if body is not None:
            own["Content-Length"] = str(len(body))
        try:
            all_headers = _request_headers(url, {**own, **headers})
            request = httpcore2.Request(method, _httpcore_url(url), headers=all_headers, content=body)
            return StreamedResponse(self._connection.handle_request(request))
        except _FAILURES as error:
            self.close()
            kind = StaleConnection if self._is_stale(error) else RequestError
            raise kind(_reason(error), transient=not isinstance(error, _LASTING)) from error

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the last response was read to its end, and the server has
        neither closed the connection nor sent anything since."""
        return self._keep_alive and self._connection.is_available() and not self._connection.has_expired()

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._connection.close()

    def _is_stale(self, error: Exception) -> bool:
        ended = isinstance(error, httpcore2.NetworkError | httpcore2.RemoteProtocolError)
        return self._requests > 1 and ended and not self._exchange.received


class OpenResponse(Protocol):
    """Sends a request and yields its response, over a connection of its own or a kept one."""

    def __call__(
        self,
        method: str,
        url: HttpUrl,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        deadline: Deadline,
    ) -> AbstractContextManager[StreamedResponse]:
        """Yield the response when its head has arrived. Raises `RequestError`."""


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

    The connection is closed on leaving the block. Raises what `HttpConnection.send` raises.
    """
    opened = HttpConnection(url.origin, connector=connector, connect_timeout_s=connect_timeout_s)
    with closing(opened):
        response = opened.send(method, url, headers=headers, body=body, deadline=deadline)
        with closing(response):
            yield response


class _TlsError(httpcore2.ConnectError):
    """The TLS handshake failed."""


@dataclass(slots=True)
class _Exchange:
    """The request that a connection carries now: its deadline, and whether anything of its response has
    arrived."""

    deadline: Deadline = field(default_factory=lambda: Deadline(0.0))
    received: bool = False


class _DeadlineBackend(httpcore2.NetworkBackend):
    """Makes one connection through a `Connector`."""

    def __init__(self, connector: Connector, connect_timeout_s: float, exchange: _Exchange) -> None:
        self._connector = connector
        self._connect_timeout_s = connect_timeout_s
        self._exchange = exchange

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
                host, port, connect_timeout_s=self._connect_timeout_s, deadline=self._exchange.deadline
            )
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _DeadlineStream(connected, self._exchange)


class _DeadlineStream(httpcore2.NetworkStream):
    """A connected socket whose operations end at the deadline of the current request."""

    def __init__(self, connected: socket.socket, exchange: _Exchange) -> None:
        self._socket = connected
        self._exchange = exchange

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore2.ReadTimeout, httpcore2.ReadError):
            self._socket.settimeout(self._exchange.deadline.remaining_s(timeout))
            if hasattr(socket, "TCP_QUICKACK"):
                # Else a server that sends head and body apart waits 40 ms for the head to be acknowledged.
                # The option does not last, so it is set for each read.
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            received = self._socket.recv(max_bytes)
        self._exchange.received = self._exchange.received or bool(received)
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        unsent = memoryview(buffer)
        with _mapped(httpcore2.WriteTimeout, httpcore2.WriteError):
            while unsent:
                self._socket.settimeout(self._exchange.deadline.remaining_s(timeout))
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
                self._socket.settimeout(self._exchange.deadline.remaining_s(timeout))
                secured = ssl_context.wrap_socket(self._socket, server_hostname=name)
        except BaseException:
            self.close()
            raise
        return _DeadlineStream(secured, self._exchange)

    def get_extra_info(self, info: str) -> Any:
        """Whether the socket `is_readable`: nothing is expected on an idle one, so its peer has closed it."""
        if info != "is_readable":
            return None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


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
_LASTING = (EgressDenied, UnicodeError, httpcore2.LocalProtocolError)
"""Failures that the same request will have again."""
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
