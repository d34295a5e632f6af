"""The task that reads a job's stream ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ourvidz.ledger.record import StreamItem
from ourvidz.web.following import next_of, stop

ITEM = StreamItem("1-0", "token", {"text": "a"})


async def one() -> AsyncIterator[StreamItem]:
    yield ITEM


async def deaf(times: int, begun: asyncio.Event) -> AsyncIterator[StreamItem]:
    """Waits for ever, and takes the first cancels for timeouts of its own."""
    while True:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            times -= 1
            if times < 0:
                raise
    yield ITEM


def test_the_items_come_one_by_one_and_then_nothing() -> None:
    """None is the end."""

    async def read() -> list[StreamItem | None]:
        items = one()
        return [await next_of(items), await next_of(items)]

    assert asyncio.run(read()) == [ITEM, None]


@pytest.mark.parametrize("times", [0, 1, 3])
def test_it_is_stopped_however_often_that_has_to_be_said(times: int) -> None:
    """The Redis client was seen to swallow a cancel: the request of a client that had gone then never ended,
    and its job went on."""

    async def end() -> bool:
        begun = asyncio.Event()
        following = next_of(deaf(times, begun))
        await begun.wait()
        await asyncio.wait_for(stop(following), 10)
        return following.cancelled()

    assert asyncio.run(end())


def test_it_is_stopped_even_when_who_waits_is_cancelled() -> None:
    """A request that is torn down must not leave its reader behind."""

    async def end() -> bool:
        begun = asyncio.Event()
        following = next_of(deaf(2, begun))
        await begun.wait()
        stopping = asyncio.ensure_future(stop(following))
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait({stopping, following}, timeout=10)
        return following.done()

    assert asyncio.run(end())
