"""Connections that are kept between requests to the same origin."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ourvidz.net.connector import CONNECT_TIMEOUT_S, Connector, Deadline
from ourvidz.net.transport import HttpConnection, StaleConnection, StreamedResponse
from ourvidz.net.urls import HttpUrl, Origin

MAX_IDLE = 64
"""Idle connections of all origins together."""
MAX_IDLE_S = 15.0
"""How long a connection is kept without a request: most servers close theirs after 5 to 75 s."""
MAX_AGE_S = 300.0
"""How long a connection is used at all: after that the name is resolved and checked again."""


class ConnectionPool:
    """Sends requests over connections that stay open. Safe to share between threads.

    The `connector` resolves and checks the host when a connection is opened. A connection is idle or carries
    one request; there are as many as requests at the same time.
    """

    def __init__(
        self,
        *,
        connector: Connector | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        max_idle_s: float = MAX_IDLE_S,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._connector = connector
        self._connect_timeout_s = connect_timeout_s
        self._max_idle_s = max_idle_s
        self._max_age_s = max_age_s
        self._lock = threading.Lock()
        self._idle: list[tuple[float, HttpConnection]] = []
        """Connections with the times since when they are idle, the longest first."""

    @contextmanager
    def open_response(
        self,
        method: str,
        url: HttpUrl,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        deadline: Deadline,
        resend: bool = True,
    ) -> Iterator[StreamedResponse]:
        """Send one request; yield the response when its head has arrived.

        A request that a kept connection could not carry, because the server had closed it, is sent once more
        on a new one, within the same deadline. The server may have received all of it the first time: with
        `resend` false that raises. Raises what `HttpConnection.send` raises.
        """
        connection = self._take(url.origin) or self._open(url.origin)
        try:
            response = connection.send(method, url, headers=headers, body=body, deadline=deadline)
        except StaleConnection:
            if not resend:
                raise
            connection = self._open(url.origin)
            response = connection.send(method, url, headers=headers, body=body, deadline=deadline)
        try:
            yield response
        finally:
            response.close()
            self._keep(connection)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _open(self, origin: Origin) -> HttpConnection:
        return HttpConnection(
            origin,
            connector=self._connector,
            connect_timeout_s=self._connect_timeout_s,
            keep_alive=True,
        )

    def _take(self, origin: Origin) -> HttpConnection | None:
        """Take the idle connection to an origin that was used last, if one is still open."""
        while True:
            with self._lock:
                entry = next((entry for entry in reversed(self._idle) if entry[1].origin == origin), None)
                if entry is None:
                    return None
                self._idle.remove(entry)
            idle_since, connection = entry
            if not self._is_outdated(idle_since, connection) and connection.reusable:
                return connection
            connection.close()

    def _keep(self, connection: HttpConnection) -> None:
        """Keep a connection for the next request, or close it; close those that were idle for too long."""
        now = time.monotonic()
        unused = []
        # Decided once: as soon as it is in the list, another thread may take it.
        reusable = connection.reusable
        with self._lock:
            if reusable:
                self._idle.append((now, connection))
            while self._idle and (len(self._idle) > MAX_IDLE or self._is_outdated(*self._idle[0])):
                unused.append(self._idle.pop(0)[1])
        for each in unused if reusable else [*unused, connection]:
            each.close()

    def _is_outdated(self, idle_since: float, connection: HttpConnection) -> bool:
        now = time.monotonic()
        return now - idle_since > self._max_idle_s or now - connection.opened_at > self._max_age_s
