"""A job's live stream as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from ourvidz import log
from ourvidz.errors import InvalidParameters, OurvidzError
from ourvidz.ledger.record import Record, StreamItem
from ourvidz.ledger.store import Ledger
from ourvidz.web.following import next_of, stop

KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
BEGINNING = "0"

_log = log.get(__name__)


async def stream(
    ledger: Ledger, job_id: str, *, after: str, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[bytes]:
    """The items after an id as they come, then the end. A comment keeps the connection open through
    silences. A ledger that goes away ends the stream: clients come back with the last id they have."""
    yield b"retry: 2000\n\n"
    items = ledger.follow(job_id, after=after)
    following = next_of(items)
    ended = False
    try:
        while True:
            finished, _ = await asyncio.wait({following}, timeout=keep_alive_s)
            if not finished:
                yield KEEP_ALIVE
                continue
            item = following.result()
            if item is None:
                break
            ended = item.kind == "done" and not await asyncio.to_thread(_overtaken, ledger, job_id, item)
            # `done` comes once, at the end: how an earlier run ended is one more state of the job.
            yield _event("state" if item.kind == "done" and not ended else item.kind, item.data, item.id)
            following = next_of(items)
        if not ended:
            record = await asyncio.to_thread(ledger.get, job_id)
            yield _event("done", _ending(record))
    except OurvidzError as gone:
        _log.warning("events_cut", job_id=job_id, code=gone.code)
    finally:
        await stop(following)


def resume_from(last_event_id: str | None) -> str:
    """The stream id a client has last seen. `InvalidParameters` when it cannot be one."""
    given = (last_event_id or "").strip() or BEGINNING
    parts = given.split("-")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) <= 19 for part in parts):
        raise InvalidParameters(
            "Last-Event-ID: not the id of an event", field="Last-Event-ID", rule="id of an event", value=given
        )
    return given


def seen_to_the_end(ledger: Ledger, record: Record, after: str) -> bool:
    """Whether a client that comes back has nothing left to hear."""
    return after != BEGINNING and record.finished and not ledger.stream(record.job_id, after=after, limit=1)


def _overtaken(ledger: Ledger, job_id: str, done: StreamItem) -> bool:
    """Whether the job was opened again after this end."""
    record = ledger.get(job_id)
    return record is not None and record.run > int(done.data["run"])


def _ending(record: Record | None) -> dict[str, Any]:
    """The last word on a job whose stream has been forgotten before its record."""
    if record is None:
        return {"status": "deleted"}
    return {"status": record.status, "run": record.run}


def _event(kind: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
