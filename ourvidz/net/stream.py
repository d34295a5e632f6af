"""An answer that is read while it is being written: server-sent events.

Whoever waits for the next event can be let go from another thread, and the server then sees that nobody
listens any more.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import requests

from ourvidz.net.client import CONNECT_S, FAILURES, KEPT_BYTES, Answer, NoAnswer, phrase, read_start, session
from ourvidz.net.sse import parse_events

_CHUNK_BYTES = 64 << 10


class Refused(Exception):
    """The server answered with something else than a stream."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status}")
        self.answer = answer


class Broken(Exception):
    """There was no answer, or it broke off."""

    def __init__(self, failed: NoAnswer) -> None:
        super().__init__(failed.reason)


class EventStream:
    """One POST and the events of its answer. `events` is for one thread, `close` for any."""

    def __init__(
        self,
        url: str,
        *,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
        connect_s: float = CONNECT_S,
    ) -> None:
        self._url = url
        self._body = body
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._line = _Line()

    def events(self) -> Iterator[bytes]:
        """Send the request; the data of every event as it comes, to the end of the answer. Raises `Refused`,
        or `Broken`, which is also how it ends after `close`."""
        asking = session(timeout_s=self._timeout_s, connect_s=self._connect_s, opener=self._line)
        sent = {"Accept": "text/event-stream", **self._headers}
        try:
            with asking, asking.post(self._url, data=self._body, headers=sent, stream=True) as response:
                if response.status_code != requests.codes.ok:
                    start = read_start(response, KEPT_BYTES)
                    raise Refused(Answer(response.status_code, response.headers, start))
                for event in parse_events(_chunks(response), flush_incomplete=True):
                    yield event.data
        except FAILURES as failed:
            raise Broken(NoAnswer(phrase(failed))) from failed
        finally:
            self.close()

    def close(self) -> None:
        """Hang up. Safe to call twice."""
        self._line.cut()


class _Line:
    """The connection of one stream; implements `Opener`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._second: socket.socket | None = None
        self._cut = False

    def open(self, host: str, port: int, *, connect_s: float, until: float) -> socket.socket:
        """A connection to `host`, unless the line is cut already. Raises `OSError` when nobody is there."""
        left_s = max(0.001, until - time.monotonic())
        made = socket.create_connection((host, port), timeout=min(connect_s, left_s))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            if self._cut:
                made.close()
                raise ConnectionAbortedError("the line was cut")
            # A second hold on the connection: TLS takes the first one over.
            self._second = made.dup()
        return made

    def cut(self) -> None:
        """End the connection under whoever reads it. Closing alone would not wake a thread that waits."""
        with self._lock:
            self._cut, second = True, self._second
            self._second = None
        if second is not None:
            with suppress(OSError):
                second.shutdown(socket.SHUT_RDWR)
            second.close()


def _chunks(response: requests.Response) -> Iterator[bytes]:
    while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
        yield chunk
