"""A TCP proxy that resets connections after a number of bytes."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import Self

CHUNK = 16 << 10


class CuttingProxy:
    """Forwards connections to a port of this machine; use it as a context manager.

    `cuts`: numbers of bytes. When the clients have sent so many in all since the last `reset`, the connection
    that sent the last of them is reset on both sides; the server never sees the byte after.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self.sent = 0
        """Bytes that clients have sent since the last `reset`."""
        self.cut = 0
        """Connections that were reset."""
        self._cuts: list[int] = []

    def reset(self, *cuts: int) -> None:
        """Count from zero, and cut at these numbers of bytes."""
        with self._lock:
            self.sent, self.cut, self._cuts = 0, 0, sorted(cuts)

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
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._forward, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, False), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(CHUNK):
                allowed = self._allowed(len(data)) if counted else len(data)
                target.sendall(data[:allowed])
                if allowed < len(data):
                    _abort(source)
                    _abort(target)
                    return
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _abort(target)

    def _allowed(self, size: int) -> int:
        """How many of the next `size` bytes are forwarded."""
        with self._lock:
            before, self.sent = self.sent, self.sent + size
            if self._cuts and self.sent > self._cuts[0]:
                self.cut += 1
                return self._cuts.pop(0) - before
            return size


def _abort(connection: socket.socket) -> None:
    """Reset a connection: its peer gets an error, not an end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
