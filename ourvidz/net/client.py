"""An HTTP client for short exchanges: one request per call, done by its deadline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ourvidz.net.transport import CONNECT_TIMEOUT_S, Connector, Deadline, RequestError, open_response
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
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        connector: Connector | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._connector = connector

    def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> HttpResponse | RequestFailure:
        """Send one POST; read status, headers and the first 64 KiB of the response body.

        A body that breaks off or does not end in time is returned as far as it was read: the status counts.
        """
        return self._send("POST", url, body, headers)

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
            with open_response(
                method,
                parsed,
                headers=headers,
                body=body,
                deadline=Deadline.after(self._timeout_s),
                connect_timeout_s=self._connect_timeout_s,
                connector=self._connector,
            ) as response:
                return HttpResponse(response.status, response.headers, response.read_start(MAX_BODY_BYTES))
        except RequestError as error:
            return RequestFailure(error.reason)
