"""Server-sent events of a streaming response, and cancellation."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from ourvidz.net.stream import EventStream, StreamBroken, StreamRefused

PATIENCE_S = 20.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
PLAIN = HEAD + b"\r\n"

Script = Callable[[socket.socket], None]
Start = Callable[[Script], EventStream]


def chunked(*parts: bytes) -> bytes:
    sized = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + sized + b"0\r\n\r\n"


@pytest.fixture
def start() -> Iterator[Start]:
    """Returns a function that opens a stream from a new server, which runs a script on one connection."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def begin(script: Script) -> EventStream:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while not connection.recv(1 << 16).endswith(b"{}"):
                    pass
                script(connection)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        listeners.append(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        return EventStream(url, body=b"{}", headers={}, timeout_s=PATIENCE_S)

    yield begin
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join(PATIENCE_S)


def sends(answer: bytes) -> Script:
    return lambda connection: connection.sendall(answer)


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN + b": hello\n\nevent: x\ndata: one\n\ndata:two\ndata: more\n\n\ndata: three",
        PLAIN + b"data: one\r\n\r\ndata: two\r\ndata: more\r\n\r\ndata: three\r\n\r\n",
        chunked(b"data: o", b"ne\n", b"\ndata: two\ndata: more\n\nda", b"ta: three\n\n"),
    ],
)
def test_events_do_not_depend_on_line_ends_and_chunks(start: Start, answer: bytes) -> None:
    """Line ends differ, chunks end anywhere, and comments are ignored."""
    assert list(start(sends(answer)).events()) == [b"one", b"two\nmore", b"three"]


def test_an_event_is_yielded_before_the_response_ends(start: Start) -> None:
    """The client does not wait for further data."""
    received = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(PLAIN + b"data: one\n\n")
        assert received.wait(PATIENCE_S)
        connection.sendall(b"data: two\n\n")

    events = start(script).events()
    assert next(events) == b"one"
    received.set()
    assert list(events) == [b"two"]


def test_closing_a_stream_unblocks_its_reader_and_disconnects(start: Start) -> None:
    """The stream is closed by another thread while its reader waits for data."""
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(PLAIN + b"data: one\n\n")
        assert connection.recv(1) == b""
        closed.set()

    stream = start(script)
    first, ended = threading.Event(), threading.Event()

    def read() -> None:
        try:
            for _ in stream.events():
                first.set()
        except StreamBroken:
            pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    assert first.wait(PATIENCE_S)
    stream.close()
    stream.close()
    assert ended.wait(PATIENCE_S)
    assert closed.wait(PATIENCE_S)


def test_a_stream_closed_before_it_connects_sends_no_request() -> None:
    """A cancellation before the start needs no connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = EventStream(
            f"http://127.0.0.1:{listener.getsockname()[1]}/", body=b"", headers={}, timeout_s=PATIENCE_S
        )
        stream.close()
        with pytest.raises(StreamBroken):
            list(stream.events())


def test_an_error_response_raises_its_status_and_body(start: Start) -> None:
    """`StreamRefused` has the response of the server."""
    stream = start(sends(b"HTTP/1.1 422 No\r\nContent-Length: 3\r\n\r\nwhy"))
    with pytest.raises(StreamRefused) as refused:
        list(stream.events())
    assert (refused.value.response.status, refused.value.response.body) == (422, b"why")


def test_a_truncated_response_raises_an_error(start: Start) -> None:
    """A chunked response without its final chunk raises an error."""
    stream = start(sends(chunked(b"data: one\n\n").removesuffix(b"0\r\n\r\n")))
    events = stream.events()
    assert next(events) == b"one"
    with pytest.raises(StreamBroken, match="broke off"):
        next(events)
