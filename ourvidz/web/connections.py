"""The connections of a shim process: how many there are, and how long a client may take.

A connection waits until its request has arrived whole, and again when the response is sent. At the limit the
one that waits longest gives way to a new one, so that silent clients keep nobody out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ourvidz.errors import CapacityExceeded
from ourvidz.web.listener import BACKLOG
from ourvidz.web.problems import problem

PROBE = "/health/live"
PROBES = 8
"""Connections above the limit, for a probe. Other requests on them are answered 503."""
OTHER_FILES = 128
"""Descriptors for what is no connection of a caller: Redis, assets, logs."""
HEADER_BYTES = 64 << 10
RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class ConnectionBudget:
    """How many connections a process may have, and how many may arrive before it has counted them."""

    connections: int
    backlog: int

    @classmethod
    def of(cls, file_limit: int, wanted: int | None) -> ConnectionBudget:
        """The budget under a limit of descriptors. `wanted` is the operator's number of connections."""
        backlog = min(BACKLOG, file_limit // 4)
        others = min(OTHER_FILES, file_limit // 4) + PROBES
        most = max(1, file_limit - backlog - others)
        return cls(min(wanted or most, most), backlog)


@dataclass(slots=True)
class Connections:
    """The limits of the connections of one process, and those that wait, the longest first."""

    most: int
    header_timeout_s: float
    body_timeout_s: float
    waiting: dict[LimitedProtocol, None] = field(default_factory=dict)

    def give_way(self) -> bool:
        """Close the connection that waits longest. Returns whether there was one."""
        if not self.waiting:
            return False
        oldest = next(iter(self.waiting))
        del self.waiting[oldest]
        oldest.transport.abort()
        return True


def limited_protocol(limits: Connections) -> type[LimitedProtocol]:
    """The protocol class of a server with these limits."""
    return type("BoundProtocol", (LimitedProtocol,), {"limits": limits})


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, with a limit on connections and time limits on what a client sends."""

    limits: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count a new connection. At the limit another one gives way, or it is for probes only."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._in_header = False
        limits = self.limits
        if len(self.connections) > limits.most and not limits.give_way():
            if len(self.connections) > limits.most + PROBES:
                transport.abort()
                return
            self.app = _ProbesOnly(self.app)
        limits.waiting[self] = None
        self._set_timer(limits.header_timeout_s, self._on_slow_header)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.limits.waiting.pop(self, None)
        self._set_timer(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; a header has a limit in bytes and in time."""
        self._header_bytes += len(data)
        super().data_received(data)
        if self._in_header and self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins. Called by the parser."""
        self._in_header = True
        self._set_timer(self.limits.header_timeout_s, self._on_slow_header)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The header has arrived. Called by the parser."""
        self._in_header, self._header_bytes = False, 0
        self._set_timer(self.limits.body_timeout_s, self._on_slow_body)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request has arrived whole. Called by the parser."""
        self._set_timer(None)
        if not self.cycle.response_complete:
            self.limits.waiting.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The response is sent, so the connection waits for another request. Called by uvicorn."""
        super().on_response_complete()
        if not self.transport.is_closing() and not self._has_request():
            self.limits.waiting[self] = None

    def pause_writing(self) -> None:
        """The client does not read what is sent. Called by the transport."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.body_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again. Called by the transport."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _has_request(self) -> bool:
        """Whether a further request, sent early, is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _set_timer(self, delay_s: float | None, call: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay_s is None or call is None else self.loop.call_later(delay_s, call)

    def _on_slow_header(self) -> None:
        if not self._in_header:
            self.transport.abort()
        elif not self._has_request():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            # The response to the request before it must not be cut.
            self._set_timer(self.limits.header_timeout_s, self._on_slow_header)

    def _on_slow_body(self) -> None:
        if self.flow.read_paused:
            # It is the shim that does not read.
            self._set_timer(self.limits.body_timeout_s, self._on_slow_body)
        elif self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer a request that has not arrived whole, and close the connection."""
        line = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        self.transport.write(line.encode())
        self.transport.close()


class _ProbesOnly:
    """ASGI application of a connection above the limit."""

    def __init__(self, app: Any) -> None:
        self._app: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == PROBE:
            await self._app(scope, receive, send)
            return
        error = CapacityExceeded(
            "This server has too many connections.", kind="connections", retry_after_s=RETRY_AFTER_S
        )
        response = problem(error, scope["path"])
        response.headers["Connection"] = "close"
        await response(scope, receive, send)
