"""Reading a job's stream in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from anyio import CancelScope

from ourvidz.ledger.record import StreamItem

AGAIN_S = 0.05


def next_of(items: AsyncIterator[StreamItem]) -> asyncio.Task[StreamItem | None]:
    """The next item, None at the end. A task, because waiting for it with a timeout would cancel the
    iterator."""
    return asyncio.ensure_future(_next(items))


async def stop(following: asyncio.Task[StreamItem | None]) -> None:
    """Cancel it and wait until it is over; who is cancelled meanwhile hears that afterwards.

    Cancelled more than once: between two of its own timeouts the Redis client may take a cancel for one of
    them and go on reading.
    """
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while not following.done():
            following.cancel()
            try:
                await asyncio.wait({following}, timeout=AGAIN_S)
            except asyncio.CancelledError as told:
                cancelled = told
    if cancelled is not None:
        raise cancelled


async def _next(items: AsyncIterator[StreamItem]) -> StreamItem | None:
    return await anext(items, None)
