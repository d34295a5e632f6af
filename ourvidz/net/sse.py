"""Parses server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LINE_BYTES = 1 << 20
"""Longest line that is accepted."""


class LineTooLong(OSError):
    """A line of the stream is longer than `LINE_BYTES`."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its `data` lines joined with newlines, its type, and its id if it carries one."""

    data: bytes
    event: str = "message"
    id: str | None = None


def parse_events(chunks: Iterable[bytes], *, flush_incomplete: bool = False) -> Iterator[ServerSentEvent]:
    """Yield each event as soon as the blank line after it has arrived.

    `chunks` are the bytes of the response body, split anywhere. Lines end with LF or CRLF; comments, events
    without data, and fields other than `data`, `event` and `id` are skipped. An event that the end of the
    body cuts off is dropped, as the standard asks, or yielded with `flush_incomplete`.

    Raises `LineTooLong`.
    """
    data: list[bytes] = []
    fields: dict[bytes, str] = {}
    for line in _split_lines(chunks):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name in (b"event", b"id"):
            fields[name] = value.decode("utf-8", "replace")
        elif not line:
            if data:
                yield _event(data, fields)
            data, fields = [], {}
    if data and flush_incomplete:
        yield _event(data, fields)


def _event(data: list[bytes], fields: dict[bytes, str]) -> ServerSentEvent:
    return ServerSentEvent(b"\n".join(data), fields.get(b"event") or "message", fields.get(b"id"))


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines without their line ends, including an incomplete last line."""
    pending = bytearray()
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            yield bytes(pending + part).removesuffix(b"\r")
            pending.clear()
        pending += rest
        if len(pending) > LINE_BYTES:
            raise LineTooLong(f"a line of the event stream is longer than {LINE_BYTES} bytes")
    if pending:
        yield bytes(pending)
