"""Server-sent events: encodes them, checks `Last-Event-ID`, and sends them as a response."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

from ourvidz.errors import InvalidParameters

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: readers skip it, and proxies see that the connection is in use."""
STREAM_START = "0"
"""The position before the first item of a job's stream."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_ID_DIGITS = 19


def encode_event(data: str, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """One event with a text as its data; lines of the text become lines of data."""
    lines = [f"id: {event_id}"] if event_id else []
    lines += [f"event: {event}"] if event else []
    lines += [f"data: {line}" for line in data.split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


def encode_json_event(
    document: Mapping[str, Any], *, event: str | None = None, event_id: str | None = None
) -> bytes:
    """One event with a JSON document as its data."""
    return encode_event(json.dumps(document, separators=(",", ":")), event=event, event_id=event_id)


def encode_retry(delay_ms: int) -> bytes:
    """How long a client waits before it reconnects."""
    return f"retry: {delay_ms}\n\n".encode()


def parse_last_event_id(header: str | None) -> str:
    """The stream position to resume after: `STREAM_START` without a header.

    Raises `InvalidParameters` for what cannot be the id of a stream item, `milliseconds-sequence`.
    """
    position = (header or "").strip() or STREAM_START
    parts = position.split("-")
    if len(parts) > 2 or not all(
        part.isascii() and part.isdigit() and len(part) <= _ID_DIGITS for part in parts
    ):
        raise InvalidParameters(
            "Last-Event-ID: not the id of an event",
            field="Last-Event-ID",
            rule="id of an event",
            value=position,
        )
    return position


class EventStreamResponse(StreamingResponse):
    """A response of server-sent events that closes its generator as soon as the client disconnects."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**HEADERS, **(headers or {})})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send every event, then close the generator."""
        async with aclosing(self._events):
            await super().stream_response(send)
