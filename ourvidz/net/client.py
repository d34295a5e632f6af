"""An HTTP client for short exchanges: one request per call, done by its deadline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ourvidz.net.connector import CONNECT_TIMEOUT_S, Connector, Deadline
from ourvidz.net.pool import ConnectionPool
from ourvidz.net.transport import OpenResponse, RequestError, open_response
from ourvidz.net.urls import parse_http_url

MAX_BODY_BYTES = 64 << 10
"""How much of a response body is read before the connection is closed."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response with any status, redirects included. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """No response was received. `reason` is a phrase without addresses and header values."""

    reason: str


class HttpClient:
    """Sends one request per call. Safe to share between threads.

    A request, from the name look-up to the last byte read, takes at most `timeout_s`; each address of the
    host may take `connect_timeout_s` to connect. `connector` opens the connections and may refuse hosts.
    `keep_alive`: connections are kept for the next requests to the same origin; otherwise each request has
    one of its own.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        connector: Connector | None = None,
        keep_alive: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        options: Any = {"connect_timeout_s": connect_timeout_s, "connector": connector}
        self._open_response: OpenResponse = (
            ConnectionPool(**options).open_response if keep_alive else partial(open_response, **options)
        )

    def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> HttpResponse | RequestFailure:
        """Send one POST; read status, headers and the first 64 KiB of the response body.

        A body that breaks off or does not end in time is returned as far as it was read: the status counts.
        """
        return self._send("POST", url, body, headers)

    def put(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> HttpResponse | RequestFailure:
        """Send one PUT; the response is read as in `post`."""
        return self._send("PUT", url, body, headers)

    def get(self, url: str, *, headers: Mapping[str, str]) -> HttpResponse | RequestFailure:
        """Send one GET; the response is read as in `post`."""
        return self._send("GET", url, None, headers)

    def options(self, url: str, *, headers: Mapping[str, str]) -> HttpResponse | RequestFailure:
        """Send one OPTIONS; the response is read as in `post`."""
        return self._send("OPTIONS", url, None, headers)

    def _send(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> HttpResponse | RequestFailure:
        parsed = parse_http_url(url)
        if parsed is None:
            return RequestFailure("the URL cannot be called")
        try:
            deadline = Deadline.after(self._timeout_s)
            with self._open_response(
                method, parsed, headers=headers, body=body, deadline=deadline
            ) as response:
                return HttpResponse(response.status, response.headers, response.read_start(MAX_BODY_BYTES))
        except RequestError as error:
            return RequestFailure(error.reason)
