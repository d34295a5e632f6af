"""The notice that a worker is draining, from its parent process to the children that compute.

Children ignore stop signals, so a pipe tells them: the parent writes one byte that no child reads, and each
child looks whether there is one. A child that starts later sees it too, and so does one that is busy.
"""

from __future__ import annotations

from typing import Protocol


class Reader(Protocol):
    """The end of a pipe that is read."""

    def poll(self, timeout: float) -> bool:
        """Whether there is something to read."""


class Writer(Protocol):
    """The end of a pipe that is written."""

    def send_bytes(self, data: bytes) -> None:
        """Write."""


_reader: Reader | None = None
_writers: list[Writer] = []


def add_writer(writer: Writer) -> None:
    """In the parent: `announce` is to write to this pipe."""
    _writers.append(writer)


def announce() -> None:
    """In the parent: let all children know that this worker drains."""
    for writer in _writers:
        writer.send_bytes(b"d")
    _writers.clear()


def listen(reader: Reader) -> None:
    """In a child: `is_draining` is to look at this pipe."""
    global _reader
    _reader = reader


def is_draining() -> bool:
    """Whether this process is the child of a worker that drains. Takes microseconds."""
    return _reader is not None and _reader.poll(0)
