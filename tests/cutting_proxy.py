"""A TCP proxy that resets connections after a number of bytes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

CHUNK = 16 << 10


class CuttingProxy:
    """Forwards connections to a port of this machine; use it as a context manager.

    `cuts`: numbers of bytes. When the clients have sent so many in all since the last `reset`, the connection
    that sent the last of them is reset on both sides; the server never sees the byte after. With
    `answers_only` it sees the whole request, and the connection is reset when it answers. `then` is called
    after a cut, before the next connection is made.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self.sent = 0
        """Bytes that clients have sent since the last `reset`."""
        self.cut = 0
        """Connections that were reset."""
        self._cuts: list[int] = []
        self._answers_only = False
        self._then: Callable[[], object] | None = None

    def reset(self, *cuts: int, answers_only: bool = False, then: Callable[[], object] | None = None) -> None:
        """Count from zero, and cut at these numbers of bytes."""
        with self._lock:
            self.sent, self.cut, self._cuts = 0, 0, sorted(cuts)
            self._answers_only, self._then = answers_only, then

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A close alone does not wake the thread that waits for connections.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                server = socket.create_connection(("127.0.0.1", self._target))
            pair = _Pair(client, server)
            for forward in (self._forward_requests, self._forward_answers):
                threading.Thread(target=forward, args=(pair,), daemon=True).start()

    def _forward_requests(self, pair: _Pair) -> None:
        try:
            while data := pair.client.recv(CHUNK):
                with self._lock:
                    allowed = self._allowed(len(data))
                    if allowed < len(data):
                        if self._answers_only:
                            pair.muted, allowed = True, len(data)
                        else:
                            pair.server.sendall(data[:allowed])
                            pair.abort()
                        if self._then is not None:
                            self._then()
                if pair.closed:
                    return
                pair.server.sendall(data[:allowed])
            pair.server.shutdown(socket.SHUT_WR)
        except OSError:
            _abort(pair.server)

    def _forward_answers(self, pair: _Pair) -> None:
        try:
            while data := pair.server.recv(CHUNK):
                if pair.muted:
                    return pair.abort()
                pair.client.sendall(data)
            pair.client.shutdown(socket.SHUT_WR)
        except OSError:
            _abort(pair.client)

    def _allowed(self, size: int) -> int:
        """How many of the next `size` bytes are forwarded."""
        before, self.sent = self.sent, self.sent + size
        if self._cuts and self.sent > self._cuts[0]:
            self.cut += 1
            return self._cuts.pop(0) - before
        return size


@dataclass(slots=True)
class _Pair:
    """The two connections of one client. `muted`: the next answer is lost."""

    client: socket.socket
    server: socket.socket
    muted: bool = False
    closed: bool = False

    def abort(self) -> None:
        """Reset both."""
        self.closed = True
        _abort(self.client)
        _abort(self.server)


def _abort(connection: socket.socket) -> None:
    """Reset a connection: its peer gets an error, not an end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
