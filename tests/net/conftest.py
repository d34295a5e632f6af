"""An HTTP server and a DNS server on free loopback ports; raw sockets allow invalid responses."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

Script = Callable[[socket.socket], None]
Page = bytes | Script


class Site:
    """Answers GET requests with raw bytes by path, or runs a script per connection; records the requests."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[bytes] = []
        self.gone = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.netloc = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.netloc}"
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def page(self, path: str, page: Page) -> str:
        """Serve `page` at `path`; return its URL."""
        self.pages[path] = page
        return self.url + path

    def close(self) -> None:
        self.gone.set()
        # Closing alone does not wake the thread that waits in accept.
        with socket.create_connection(("127.0.0.1", self.port)):
            self._server.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self.gone.is_set():
                connection.close()
                return
            threading.Thread(target=self._handle_connection, args=(connection,), daemon=True).start()

    def _handle_connection(self, connection: socket.socket) -> None:
        with connection:
            request = b""
            try:
                while b"\r\n\r\n" not in request and (more := connection.recv(1 << 16)):
                    request += more
                    if not request.startswith(b"GET"):
                        break
                self.requests.append(request)
                target = request.split(b" ")[1].decode("latin-1") if b" " in request else ""
                page = self.pages.get(target, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
                connection.sendall(page) if isinstance(page, bytes) else page(connection)
            except OSError:
                self.gone.wait(0)

    def repeat(self, start: bytes, repeated: bytes, pause_s: float) -> Script:
        """A script that sends `start`, then `again` repeatedly until the connection ends."""

        def script(connection: socket.socket) -> None:
            connection.sendall(start)
            while not self.gone.wait(pause_s):
                connection.sendall(repeated)

        return script


class NameServer:
    """A DNS server over UDP. Answers A queries with the next of `answers`, repeating the last."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.query_count = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wake_up:
            wake_up.sendto(b"", ("127.0.0.1", self.port))
        self._server.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            address = self.answers[min(self.query_count, len(self.answers) - 1)]
            self.query_count += 1
            end = query.index(b"\0", 12) + 5
            head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
            self._socket.sendto(head + query[12:end] + record, client)


@pytest.fixture
def site() -> Iterator[Site]:
    """An HTTP server with scriptable pages."""
    started = Site()
    yield started
    started.close()


@pytest.fixture
def other_site() -> Iterator[Site]:
    """A second HTTP server, on another port."""
    started = Site()
    yield started
    started.close()


@pytest.fixture
def name_server() -> Iterator[Callable[[list[str]], NameServer]]:
    """Returns a function that starts a name server with the given answers."""
    started: list[NameServer] = []

    def start(answers: list[str]) -> NameServer:
        started.append(NameServer(answers))
        return started[-1]

    yield start
    for one in started:
        one.close()
