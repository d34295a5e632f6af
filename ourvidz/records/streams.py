"""Reading the streams of many jobs at once: what is wanted, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from ourvidz.records.record import StreamItem


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Up to `count` items of a job's stream after an item id are wanted."""

    job_id: str
    after: str
    count: int


@dataclass(frozen=True, slots=True)
class StreamSnapshot:
    """The state of a job, each field None where it has none, and items of its stream, read after the state:
    whatever the state says is then in the stream."""

    state: dict[str, str | None]
    items: list[StreamItem]
