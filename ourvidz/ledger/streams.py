"""The live streams of jobs: read one at a time, or many in one round trip from coroutines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ourvidz.errors import InternalError, InvalidParameters
from ourvidz.ledger.base import LedgerBase
from ourvidz.ledger.connection import retry_async
from ourvidz.records.codec import load_item
from ourvidz.records.keys import Keys
from ourvidz.records.record import StreamItem
from ourvidz.records.streams import StreamRequest, StreamSnapshot

STREAM_START = "0"
"""The position before the first item of a stream."""
_STATE_FIELDS = ("status", "run", "attempt", "stage", "progress", "created_at")


class StreamOperations(LedgerBase):
    """Verbs that read streams. The scripts that change a job append to them."""

    def stream(self, job_id: str, *, after: str = STREAM_START, limit: int = 500) -> list[StreamItem]:
        """Items of a job's stream after an item id, oldest first. Old items are trimmed.
        `InvalidParameters` when `after` is no item id."""
        name, start = self._keys.stream(job_id), f"({checked_item_id(after)}"
        items = self._connection.with_retries(
            lambda: self._connection.client.xrange(name, min=start, count=limit)
        )
        if items:
            return [load_item(item_id, fields) for item_id, fields in items]
        state = self._connection.with_retries(
            lambda: self._connection.client.hmget(self._keys.job(job_id), *_STATE_FIELDS)
        )
        return _unwritten_items(dict(zip(_STATE_FIELDS, state, strict=True)), after)

    def open_stream_client(self) -> StreamClient:
        """A client of the streams for the running event loop, with connections of its own. The caller closes
        it."""
        return StreamClient(self._connection.open_async_client(), self._keys)


class StreamClient:
    """Reads streams from coroutines of one event loop, and subscribes to their announcements."""

    def __init__(self, client: Any, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def channel(self, job_id: str) -> str:
        """The channel on which new items of a job's stream are announced, see `scripts/lib/stream.lua`."""
        return self._keys.stream(job_id)

    def pubsub(self) -> Any:
        """A subscriber with a connection of its own, redis-py's. The caller closes it."""
        return self._client.pubsub()

    async def read(self, requests: Sequence[StreamRequest]) -> list[StreamSnapshot | InternalError]:
        """Read many streams in one round trip; an error in place of each that this release cannot read.
        Raises `WorkerUnavailable` when the server stays away."""

        async def execute() -> list[Any]:
            pipeline = self._client.pipeline(transaction=False)
            for request in requests:
                pipeline.hmget(self._keys.job(request.job_id), *_STATE_FIELDS)
                pipeline.xrange(
                    self._keys.stream(request.job_id), min=f"({request.after}", count=request.count
                )
            answers = await pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                    raise answer
            return list(answers)

        answers = await retry_async(execute)
        return list(map(_snapshot, requests, answers[::2], answers[1::2]))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _snapshot(request: StreamRequest, fields: Any, items: Any) -> StreamSnapshot | InternalError:
    """The snapshot in two answers; an error where what is stored cannot be read: the followers of other jobs
    have their answers in the same batch."""
    try:
        state = dict(zip(_STATE_FIELDS, fields, strict=True))
        written = [load_item(item_id, row) for item_id, row in items]
        return StreamSnapshot(state, written or _unwritten_items(state, request.after))
    except (KeyError, TypeError, ValueError):
        return InternalError(f"the stream of job {request.job_id} cannot be read by this release")


def _unwritten_items(state: dict[str, str | None], after: str) -> list[StreamItem]:
    """The first item of a new job's stream, which is written together with the second one; none for a reader
    that has it, and for any other job. `scripts/lib/stream.lua` writes the same."""
    if state["status"] != "queued" or state["created_at"] is None:
        return []
    created_ms = int(float(state["created_at"]) * 1000)
    if int(after.partition("-")[0]) >= created_ms:
        return []
    data = {"status": "queued", "run": int(state["run"] or 1), "attempt": 0, "stage": None}
    return [StreamItem(f"{created_ms}-0", "state", data)]


def checked_item_id(after: str) -> str:
    """Return the id of a stream item. Raises `InvalidParameters` for any other text."""
    if not re.fullmatch(r"\d{1,19}(-\d{1,19})?", after, flags=re.ASCII):
        raise InvalidParameters(
            "not the id of an event", field="after", rule="id of a stream item", value=after
        )
    return after
