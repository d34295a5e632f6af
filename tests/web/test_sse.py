"""Server-sent events: what is encoded is parsed back, and positions are checked."""

from __future__ import annotations

import json

import pytest

from ourvidz.errors import InvalidParameters
from ourvidz.net.sse import ServerSentEvent, parse_events
from ourvidz.web import sse


def test_an_encoded_event_is_parsed_back() -> None:
    """The encoder and the clients' parser agree on ids, types and lines."""
    sent = sse.encode_retry(2000) + sse.KEEP_ALIVE
    sent += sse.encode_event("two\nlines", event="token", event_id="1-0") + sse.encode_event("[DONE]")
    assert list(parse_events([sent])) == [
        ServerSentEvent(b"two\nlines", "token", "1-0"),
        ServerSentEvent(b"[DONE]"),
    ]


def test_a_json_event_is_one_line_of_data() -> None:
    """Line breaks and non-ASCII characters in a text are escaped by JSON."""
    document = {"text": "caf\u00e9\n\u2028 open"}
    (event,) = parse_events([sse.encode_json_event(document)])
    assert b"\n" not in event.data
    assert json.loads(event.data) == document


@pytest.mark.parametrize("header", ["x", "1-2-3", "-", "9" * 40, "\uff11"])
def test_a_last_event_id_that_is_no_position_is_refused(header: str) -> None:
    """Better than silently starting over."""
    with pytest.raises(InvalidParameters):
        sse.parse_last_event_id(header)


def test_no_last_event_id_is_the_start_of_the_stream() -> None:
    """Also an empty header, as some clients send."""
    assert sse.parse_last_event_id(None) == sse.parse_last_event_id(" ") == sse.STREAM_START
