"""A response that is read while the server writes it: server-sent events.

Another thread may close the stream while one waits for its next event; the server then sees the connection
end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress

from ourvidz.net.client import MAX_BODY_BYTES, HttpResponse
from ourvidz.net.connector import CONNECT_TIMEOUT_S, Connector, Deadline, DirectConnector
from ourvidz.net.sse import LineTooLong, parse_events
from ourvidz.net.transport import RequestError, open_response
from ourvidz.net.urls import parse_http_url


class StreamRefused(Exception):
    """The server's response is not a 200; `response` holds it, with the first 64 KiB of its body."""

    def __init__(self, response: HttpResponse) -> None:
        super().__init__(f"HTTP {response.status}")
        self.response = response


class StreamBroken(Exception):
    """There was no response, or it broke off. The message is a phrase that is safe to show."""


class EventStream:
    """One POST request and the server-sent events of its response.

    `events` is for one thread, `close` for any. The whole stream takes at most `timeout_s`.
    """

    def __init__(
        self,
        url: str,
        *,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._url = url
        self._body = body
        self._headers = {"Accept": "text/event-stream", **headers}
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._connector = _InterruptibleConnector(DirectConnector())

    def events(self) -> Iterator[bytes]:
        """Send the request and yield the data of each event until the response ends.

        Raises `StreamRefused` for a status other than 200, and `StreamBroken` for every other failure, which
        includes a call of `close`.
        """
        url = parse_http_url(self._url)
        if url is None:
            raise StreamBroken("the URL cannot be called")
        try:
            with open_response(
                "POST",
                url,
                headers=self._headers,
                body=self._body,
                deadline=Deadline.after(self._timeout_s),
                connect_timeout_s=self._connect_timeout_s,
                connector=self._connector,
            ) as response:
                if response.status != 200:
                    start = response.read_start(MAX_BODY_BYTES)
                    raise StreamRefused(HttpResponse(response.status, response.headers, start))
                for event in parse_events(response.iter_bytes(), flush_incomplete=True):
                    yield event.data
        except RequestError as error:
            raise StreamBroken(error.reason) from error
        except LineTooLong as error:
            raise StreamBroken("a line of the answer is too long") from error
        finally:
            self.close()

    def close(self) -> None:
        """End the connection. Safe to call twice, and before `events`."""
        self._connector.interrupt()


class _InterruptibleConnector:
    """Makes one connection that any thread can end; implements `Connector`."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._lock = threading.Lock()
        self._duplicate: socket.socket | None = None
        self._interrupted = False

    def connect(self, host: str, port: int, *, connect_timeout_s: float, deadline: Deadline) -> socket.socket:
        connected = self._connector.connect(
            host, port, connect_timeout_s=connect_timeout_s, deadline=deadline
        )
        with self._lock:
            if self._interrupted:
                connected.close()
                raise ConnectionAbortedError("the stream is closed")
            # The TLS layer takes over the socket object itself, so interrupting needs a duplicate.
            self._duplicate = connected.dup()
        return connected

    def interrupt(self) -> None:
        """Shut the connection down; a thread that waits for its bytes wakes up, which `close` alone would
        not do."""
        with self._lock:
            self._interrupted, duplicate = True, self._duplicate
            self._duplicate = None
        if duplicate is not None:
            with suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)
            duplicate.close()
