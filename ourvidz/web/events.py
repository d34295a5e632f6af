"""A job's event stream: read from the ledger, and sent as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from anyio import CancelScope

from ourvidz import log
from ourvidz.errors import OurvidzError
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record, StreamItem
from ourvidz.web import sse
from ourvidz.web.callers import Stop, open_callers, stopped

KEEP_ALIVE_S = 15.0
CHECK_S = 3.0
"""Interval at which the key or token of an open stream is checked again, if it can be revoked or ends."""
RECONNECT_MS = 2000
CANCEL_AGAIN_S = 0.05

_log = log.get(__name__)


class StreamReader:
    """Reads stream items one at a time, each with a timeout, until `stop` is done. Close it with `aclosing`.

    A timeout leaves the pending read running, so no item is lost: the next call waits for the same item.
    """

    def __init__(self, items: AsyncIterator[StreamItem], stop: Stop | None = None) -> None:
        self._items = items
        self._stop = stop
        self._pending: asyncio.Task[StreamItem | None] | None = None

    async def next_item(self, *, timeout_s: float) -> StreamItem | None:
        """The next item, or None at the end of the stream. Raises `TimeoutError`, and `WorkerUnavailable`
        once the shim stops."""
        if self._pending is None:
            # A task: cancelling `anext` itself would end the iterator.
            self._pending = asyncio.ensure_future(_next_or_none(self._items))
        awaited: set[asyncio.Future[Any]] = {self._pending}
        if self._stop is not None:
            awaited.add(self._stop)
        await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._pending.done():
            read, self._pending = self._pending, None
            return read.result()
        if self._stop is not None and self._stop.done():
            raise stopped()
        raise TimeoutError

    async def aclose(self) -> None:
        """Cancel the pending read and wait until it has ended, then close the iterator.

        A cancellation of the caller that arrives during the wait is re-raised after it. The read is cancelled
        repeatedly: between two of its own timeouts the Redis client may take a cancellation for one of them
        and read on.
        """
        cancelled: asyncio.CancelledError | None = None
        with CancelScope(shield=True):
            while self._pending is not None and not self._pending.done():
                self._pending.cancel()
                try:
                    await asyncio.wait({self._pending}, timeout=CANCEL_AGAIN_S)
                except asyncio.CancelledError as raised:
                    cancelled = raised
            if self._pending is not None and not self._pending.cancelled():
                self._pending.exception()  # Retrieved, or asyncio logs it.
            if isinstance(self._items, AsyncGenerator):
                await self._items.aclose()
        if cancelled is not None:
            raise cancelled


async def stream(
    ledger: Ledger,
    job_id: str,
    items: AsyncIterator[StreamItem],
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
    is_allowed: Callable[[], bool] | None = None,
    check_s: float = CHECK_S,
) -> AsyncGenerator[bytes, None]:
    """Yield the items of a job's stream as events as they come, and `done` once, at the end.

    A keep-alive comment is sent after `keep_alive_s` without an event. When the ledger cannot be reached, or
    the shim stops, the stream ends without `done`: clients reconnect with the last id they have. So it does
    when `is_allowed`, which is asked every `check_s` seconds, says that the caller may not read on.
    """
    yield sse.encode_retry(RECONNECT_MS)
    ended = False
    try:
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(open_callers.follow())
            reader = await stack.enter_async_context(aclosing(StreamReader(items, stop)))
            checked_at = time.monotonic()
            while not ended:
                if is_allowed is not None and time.monotonic() - checked_at >= check_s:
                    checked_at = time.monotonic()
                    if not await asyncio.to_thread(is_allowed):
                        return
                try:
                    item = await reader.next_item(
                        timeout_s=keep_alive_s if is_allowed is None else min(keep_alive_s, check_s)
                    )
                except TimeoutError:
                    yield sse.KEEP_ALIVE
                    continue
                if item is None:
                    break
                ended = item.kind == "done" and not await asyncio.to_thread(
                    _was_reopened, ledger, job_id, item
                )
                # The end of an earlier run is one more state: clients leave at `done`, and a retry follows.
                kind = "state" if item.kind == "done" and not ended else item.kind
                yield sse.encode_json_event(item.data, event=kind, event_id=item.id)
        if not ended:
            record = await asyncio.to_thread(ledger.get, job_id)
            yield sse.encode_json_event(_final_state(record), event="done")
    except OurvidzError as failed:
        # A stop ends every stream, maybe thousands: no news.
        if not open_callers.stopping:
            _log.warning("events_cut", job_id=job_id, code=failed.code)


def is_fully_read(ledger: Ledger, record: Record, after: str) -> bool:
    """Whether a reconnecting client has already received the last event of a finished job."""
    return (
        after != sse.STREAM_START
        and record.finished
        and not ledger.stream(record.job_id, after=after, limit=1)
    )


def _was_reopened(ledger: Ledger, job_id: str, done: StreamItem) -> bool:
    """Whether a later run than the one that `done` ended was opened."""
    record = ledger.get(job_id)
    return record is not None and record.run > int(done.data["run"])


def _final_state(record: Record | None) -> dict[str, Any]:
    """The data of `done` for a job whose stream has expired before its record."""
    if record is None:
        return {"status": "deleted"}
    return {"status": record.status, "run": record.run}


async def _next_or_none(items: AsyncIterator[StreamItem]) -> StreamItem | None:
    return await anext(items, None)
