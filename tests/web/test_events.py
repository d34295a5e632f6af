"""The event stream of a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ourvidz.errors import OutOfMemory, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import StreamItem
from ourvidz.ledger.redis_store import RedisLedger
from ourvidz.web import events, sse
from ourvidz.web.events import StreamReader


def parsed(text: str) -> list[dict[str, Any]]:
    """The events in a stream's text; comments and settings are left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


@pytest.fixture(params=["memory", "redis"])
def told(request, shim) -> Any:
    """A shim with one job that has been through everything, on both ledgers."""
    told = shim if request.param == "memory" else request.getfixturevalue("real_shim")
    told.submit()
    claim = told.claim("job-1")
    items = [("token", {"text": "a"}), ("preview", {"webp": "UklGRg=="})]
    told.ledger.step(claim, progress=40, items=[("progress", {"progress": 40}), *items])
    assert told.ledger.end("job-1", run=1, fence=claim.fence, outcome=told.completed())
    return told


def test_the_stream_tells_everything_in_order_and_ends(told) -> None:
    """A page that opens late still sees the whole story."""
    answer = told.client.get("/jobs/job-1/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [event["event"] for event in parsed(answer.text)]
    assert kinds[0] == "state"
    assert {"progress", "token", "preview"} <= set(kinds)
    assert kinds[-1] == "done"
    assert kinds.count("done") == 1


def test_the_ids_are_the_ledgers(told) -> None:
    """They are what a reader resumes by."""
    ids = [event["id"] for event in parsed(told.client.get("/jobs/job-1/events").text)]
    assert ids == [item.id for item in told.ledger.stream("job-1")]


def test_a_reader_resumes_after_the_last_event_it_saw(told) -> None:
    """Nothing is repeated, nothing is missed."""
    everything = parsed(told.client.get("/jobs/job-1/events").text)
    for seen in range(1, len(everything)):
        headers = {"Last-Event-ID": everything[seen - 1]["id"]}
        assert parsed(told.client.get("/jobs/job-1/events", headers=headers).text) == everything[seen:]


def test_a_reader_that_saw_the_end_is_sent_away(told) -> None:
    """An EventSource reconnects for ever unless it is told 204."""
    last = parsed(told.client.get("/jobs/job-1/events").text)[-1]["id"]
    assert told.client.get("/jobs/job-1/events", headers={"Last-Event-ID": last}).status_code == 204


class Silent(RedisLedger):
    """Says nothing until it is told to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.speak = asyncio.Event()

    async def follow(self, job_id: str, *, after: str = "0") -> Any:
        await self.speak.wait()
        raise WorkerUnavailable("away")
        yield


def test_a_silent_stream_is_kept_alive_and_ends_when_the_ledger_goes_away(make_ledger) -> None:
    """Proxies cut quiet connections; a cut stream is resumed by the client."""

    async def listen() -> list[bytes]:
        ledger = make_ledger(Silent)
        heard = []
        async for chunk in events.stream(ledger, "job-1", after="0", keep_alive_s=0.001):
            heard.append(chunk)
            if heard.count(sse.KEEP_ALIVE) == 3:
                ledger.speak.set()
        return heard

    assert asyncio.run(listen()).count(sse.KEEP_ALIVE) >= 3


def test_a_reader_that_leaves_stops_the_following(make_ledger) -> None:
    """Ten thousand closed tabs must not leave ten thousand readers behind."""

    async def leave() -> int:
        stream = events.stream(make_ledger(Silent), "job-1", after="0", keep_alive_s=0.001)
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        return len(asyncio.all_tasks())

    assert asyncio.run(leave()) == 1


def test_a_job_whose_stream_is_forgotten_still_ends(shim, make_ledger) -> None:
    """The stream is kept for less time than the record."""
    shim.submit()
    shim.end("job-1", shim.completed())

    async def listen() -> str:
        ledger = make_ledger()
        ledger.get = shim.ledger.get  # type: ignore[method-assign]
        return b"".join([chunk async for chunk in events.stream(ledger, "job-1", after="0")]).decode()

    assert parsed(asyncio.run(listen())) == [{"event": "done", "data": {"status": "completed", "run": 1}}]


def test_the_end_of_an_earlier_run_is_told_as_a_state(shim) -> None:
    """A reader that leaves at `done` must not leave before the retry has ended."""
    shim.submit()
    claim = shim.claim("job-1")
    failed = Outcome.failure(OutOfMemory("no room"))
    assert shim.ledger.end("job-1", run=1, fence=claim.fence, outcome=failed)
    shim.ledger.reopen("job-1", priority=6)
    second = shim.ledger.claim("job-1", 2, worker_id="w", lease_s=10, token="second")
    assert second is not None
    assert shim.ledger.end("job-1", run=2, fence=second.fence, outcome=shim.completed())
    heard = parsed(shim.client.get("/jobs/job-1/events").text)
    statuses = [(event["event"], event["data"]["status"]) for event in heard if "status" in event["data"]]
    assert ("state", "failed") in statuses
    assert [status for kind, status in statuses if kind == "done"] == ["completed"]


ITEM = StreamItem("1-0", "token", {"text": "a"})


async def one_item() -> AsyncIterator[StreamItem]:
    yield ITEM


async def item_after(released: asyncio.Event) -> AsyncIterator[StreamItem]:
    await released.wait()
    yield ITEM


async def swallowing(cancellations: int, reading: asyncio.Event) -> AsyncIterator[StreamItem]:
    """Waits for ever, and ignores the first cancellations."""
    while True:
        reading.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellations -= 1
            if cancellations < 0:
                raise
    yield ITEM


def test_a_reader_returns_each_item_and_then_none() -> None:
    """None is the end of the stream."""

    async def read() -> list[StreamItem | None]:
        reader = StreamReader(one_item())
        return [await reader.next_item(timeout_s=10), await reader.next_item(timeout_s=10)]

    assert asyncio.run(read()) == [ITEM, None]


def test_a_timeout_loses_no_item() -> None:
    """The pending read goes on: the next call returns its item."""

    async def read() -> StreamItem | None:
        released = asyncio.Event()
        reader = StreamReader(item_after(released))
        with pytest.raises(TimeoutError):
            await reader.next_item(timeout_s=0.001)
        released.set()
        return await reader.next_item(timeout_s=10)

    assert asyncio.run(read()) == ITEM


@pytest.mark.parametrize("cancellations", [0, 1, 3])
def test_closing_a_reader_ends_a_read_that_swallows_cancellations(cancellations: int) -> None:
    """The Redis client was seen to swallow one: the request of a client that had disconnected then never
    ended, and its job went on."""

    async def close() -> int:
        reading = asyncio.Event()
        reader = StreamReader(swallowing(cancellations, reading))
        with pytest.raises(TimeoutError):
            await reader.next_item(timeout_s=0.001)
        await reading.wait()
        await asyncio.wait_for(reader.aclose(), 10)
        return len(asyncio.all_tasks())

    assert asyncio.run(close()) == 1


def test_a_reader_is_closed_also_when_its_closer_is_cancelled() -> None:
    """A request that is torn down leaves no read behind, and is cancelled afterwards."""

    async def close() -> tuple[bool, int]:
        reading = asyncio.Event()
        reader = StreamReader(swallowing(2, reading))
        with pytest.raises(TimeoutError):
            await reader.next_item(timeout_s=0.001)
        await reading.wait()
        closing = asyncio.ensure_future(reader.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing}, timeout=10)
        return closing.cancelled(), len(asyncio.all_tasks())

    assert asyncio.run(close()) == (True, 1)
