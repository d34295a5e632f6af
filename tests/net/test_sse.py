"""Server-sent events are parsed as the standard says, however the bytes arrive."""

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
    """Comments and `retry` are skipped, data may have several lines, and a type or id ends with its event."""
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(parse_events(chunks)) == EVENTS


@pytest.mark.parametrize(("flush", "expected"), [(False, [b"one"]), (True, [b"one", b"tw"])])
def test_an_event_cut_off_by_the_end_of_the_body_is_dropped_unless_asked_for(
    flush: bool, expected: list[bytes]
) -> None:
    """Half an event may be half a JSON document; some model servers leave the last blank line out."""
    found = parse_events([b"data: one\n\ndata: tw"], flush_incomplete=flush)
    assert [event.data for event in found] == expected


def test_a_line_without_end_is_refused() -> None:
    """The line length is limited, which bounds memory."""
    with pytest.raises(LineTooLong):
        list(parse_events([b"data: "] + [b"x" * 4096] * (LINE_BYTES // 4096)))
