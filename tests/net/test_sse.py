"""The parser of server-sent events follows the WHATWG standard, independent of how the bytes are split."""

from __future__ import annotations

import pytest

from ourvidz.net.sse import LINE_BYTES, LineTooLong, ServerSentEvent, parse_events

STREAM = (
    b": keep-alive\n\nretry: 2000\n\n"
    b'id: 1-0\nevent: progress\ndata: {"progress":\ndata: 5}\n\n'
    b"data:two\r\n\r\n"
    b"event: empty\n\n"
    b"data: caf\xc3\xa9: open\n\n"
)
EVENTS = [
    ServerSentEvent(b'{"progress":\n5}', "progress", "1-0"),
    ServerSentEvent(b"two"),
    ServerSentEvent("café: open".encode()),
]


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_events_do_not_depend_on_how_the_body_is_split(size: int) -> None:
    """Comments and `retry` are ignored, data may have several lines; type and id apply to one event only."""
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(parse_events(chunks)) == EVENTS


@pytest.mark.parametrize(("flush", "expected"), [(False, [b"one"]), (True, [b"one", b"tw"])])
def test_an_incomplete_last_event_is_returned_only_with_flush(flush: bool, expected: list[bytes]) -> None:
    """It may be a truncated JSON document, but some model servers omit the final blank line."""
    events = parse_events([b"data: one\n\ndata: tw"], flush_incomplete=flush)
    assert [event.data for event in events] == expected


def test_a_line_over_the_length_limit_is_refused() -> None:
    """The limit bounds the memory use."""
    with pytest.raises(LineTooLong):
        list(parse_events([b"data: "] + [b"x" * 4096] * (LINE_BYTES // 4096)))
