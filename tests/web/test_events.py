"""The event stream of a job, and the reader that it is made with."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import redis

from ourvidz.errors import OutOfMemory, WorkerUnavailable
from ourvidz.following import Followers
from ourvidz.jobs.outcome import Outcome
from ourvidz.keys.store import KeyStore
from ourvidz.net.sse import parse_events
from ourvidz.records.record import StreamItem
from ourvidz.web import events, sse
from ourvidz.web.events import StreamReader


class Event(NamedTuple):
    """An event with its JSON data decoded."""

    kind: str
    data: Any
    id: str | None = None


def parse(body: bytes) -> list[Event]:
    """The events in a response body."""
    return [Event(event.event, json.loads(event.data), event.id) for event in parse_events([body])]


@pytest.fixture
def ended(shim) -> Any:
    """A shim with one completed job whose stream has items of every kind."""
    shim.submit()
    claim = shim.claim("job-1")
    items = [("token", {"text": "a"}), ("preview", {"webp": "UklGRg=="})]
    shim.ledger.step(claim, progress=40, items=[("progress", {"progress": 40}), *items])
    assert shim.ledger.end(claim, outcome=shim.completed())
    return shim


def test_the_stream_has_every_event_in_order_and_ends_with_done(ended) -> None:
    """A client that connects late still receives all of them."""
    answer = ended.client.get("/jobs/job-1/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [event.kind for event in parse(answer.content)]
    assert kinds[0] == "state"
    assert {"progress", "token", "preview"} <= set(kinds)
    assert kinds[-1] == "done"
    assert kinds.count("done") == 1


def test_a_shim_listens_before_its_first_caller(shim_with_broker, redis_url: str) -> None:
    """A lone caller had to wait for two new connections."""
    with redis.Redis.from_url(redis_url) as client:
        deadline = time.monotonic() + 10
        while not any(int(each["sub"]) for each in client.client_list()):
            assert time.monotonic() < deadline, "nobody listens"


def test_the_event_ids_are_those_of_the_ledger(ended) -> None:
    """Clients resume by them."""
    ids = [event.id for event in parse(ended.client.get("/jobs/job-1/events").content)]
    assert ids == [item.id for item in ended.ledger.stream("job-1")]


def test_a_client_resumes_after_the_last_event_it_received(ended) -> None:
    """No event is repeated, none is missed."""
    everything = parse(ended.client.get("/jobs/job-1/events").content)
    for received in range(1, len(everything)):
        headers = {"Last-Event-ID": everything[received - 1].id}
        answer = ended.client.get("/jobs/job-1/events", headers=headers)
        assert parse(answer.content) == everything[received:]


def test_a_client_that_received_the_last_event_gets_204(ended) -> None:
    """An EventSource reconnects for ever after anything else."""
    last = parse(ended.client.get("/jobs/job-1/events").content)[-1].id
    assert ended.client.get("/jobs/job-1/events", headers={"Last-Event-ID": last}).status_code == 204


async def silent_until(failed: asyncio.Event) -> AsyncGenerator[StreamItem, None]:
    """A stream without items, which fails once `failed` is set."""
    await failed.wait()
    raise WorkerUnavailable("away")
    yield


def test_a_silent_stream_sends_keep_alives_and_ends_when_the_ledger_fails(make_ledger) -> None:
    """Proxies close idle connections; clients resume a stream that ended without `done`."""

    async def read() -> list[bytes]:
        received, failed = [], asyncio.Event()
        items = silent_until(failed)
        async for chunk in events.stream(make_ledger(), "job-1", items, keep_alive_s=0.001):
            received.append(chunk)
            if received.count(sse.KEEP_ALIVE) == 3:
                failed.set()
        return received

    assert asyncio.run(read()).count(sse.KEEP_ALIVE) >= 3


def test_a_client_that_disconnects_stops_the_read(make_ledger) -> None:
    """Closed browser tabs leave no readers behind."""

    async def disconnect() -> int:
        items = silent_until(asyncio.Event())
        stream = events.stream(make_ledger(), "job-1", items, keep_alive_s=0.001)
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        return len(asyncio.all_tasks())

    assert asyncio.run(disconnect()) == 1


def test_a_job_whose_stream_has_expired_still_ends_with_done(shim, make_ledger) -> None:
    """Streams expire before records."""
    shim.submit()
    shim.end("job-1", shim.completed())

    async def read() -> bytes:
        ledger = make_ledger()
        ledger.get = shim.ledger.get  # type: ignore[method-assign]
        items = Followers(ledger).follow("job-1")
        return b"".join([chunk async for chunk in events.stream(ledger, "job-1", items)])

    assert parse(asyncio.run(read())) == [Event("done", {"status": "completed", "run": 1})]


def test_the_end_of_an_earlier_run_is_a_state_event(shim) -> None:
    """Clients disconnect at `done`, and must not before the retry has ended."""
    shim.submit()
    claim = shim.claim("job-1")
    failed = Outcome.failure(OutOfMemory("no room"))
    assert shim.ledger.end(claim, outcome=failed)
    shim.ledger.reopen("job-1", priority=6)
    second = shim.ledger.claim("job-1", 2, worker_id="w", lease_s=10, token="second")
    assert second is not None
    assert shim.ledger.end(second, outcome=shim.completed())
    received = parse(shim.client.get("/jobs/job-1/events").content)
    statuses = [(event.kind, event.data["status"]) for event in received if "status" in event.data]
    assert ("state", "failed") in statuses
    assert [status for kind, status in statuses if kind == "done"] == ["completed"]


def test_a_client_that_resumes_behind_trimmed_events_gets_a_gap_and_the_state(shim) -> None:
    """It would show the end of a text as the continuation of its beginning."""
    shim.submit()
    claim = shim.claim("job-1")
    shim.ledger.step(claim, progress=25)
    received = shim.ledger.stream("job-1")[-1].id
    for start in range(0, 700, 100):
        shim.ledger.step(claim, items=[("token", {"text": str(start + each)}) for each in range(100)])
    assert shim.ledger.end(claim, outcome=shim.completed())
    answer = shim.client.get("/jobs/job-1/events", headers={"Last-Event-ID": received})
    gap, state, progress, token, *_, done = parse(answer.content)
    assert gap == Event("gap", {"after": received}, received)
    assert (state.kind, state.data["status"], state.id) == ("state", "completed", received)
    assert (progress.kind, progress.data["progress"]) == ("progress", 100.0)
    assert (token.kind, done.kind) == ("token", "done")
    again = shim.client.get("/jobs/job-1/events", headers={"Last-Event-ID": gap.id})
    assert parse(again.content)[0] == gap, "a client that is cut off in a gap gets it again"


ITEM = StreamItem("1-0", "token", {"text": "a"})


async def one_item() -> AsyncIterator[StreamItem]:
    yield ITEM


async def item_after(released: asyncio.Event) -> AsyncIterator[StreamItem]:
    await released.wait()
    yield ITEM


async def swallowing(cancellations: int, reading: asyncio.Event) -> AsyncIterator[StreamItem]:
    """Waits for ever and ignores the first `cancellations`."""
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


def test_a_stream_ends_when_its_caller_may_not_read_on(make_ledger) -> None:
    """A key that is revoked, or a token that ends, would go on reading as long as the job runs."""
    allowed = iter([True, True, False])

    async def silent() -> AsyncGenerator[StreamItem, None]:
        await asyncio.Event().wait()
        yield StreamItem("1-0", "progress", {})

    async def read() -> bytes:
        ask = partial(next, allowed)
        stream = events.stream(make_ledger(), "job-1", silent(), is_allowed=ask, check_s=0.001)
        return b"".join([chunk async for chunk in stream])

    body = asyncio.run(asyncio.wait_for(read(), timeout=30))
    assert list(allowed) == []
    assert b"done" not in body


def test_only_what_can_be_revoked_is_asked_for_again(open_shim, monkeypatch) -> None:
    """The question is whether the request as a whole would still be answered."""
    shim = open_shim(OURVIDZ_API_KEYS="shop:s3cret:jobs")
    operator = {"X-API-Key": "s3cret"}
    asked = []

    async def stream(*_: object, is_allowed: Any) -> AsyncGenerator[bytes, None]:
        asked.append(is_allowed)
        yield b""

    monkeypatch.setattr("ourvidz.web.jobs.events.stream", stream)

    shim.client.post("/jobs", json=shim.payload(), headers=operator)
    keys = KeyStore(shim.ledger.connection)
    key_id, key = keys.create("follower", frozenset({"jobs"}))
    for headers in (operator, {"X-API-Key": key}):
        assert shim.client.get("/jobs/job-1/events", headers=headers).status_code == 200
    assert (asked[0], asked[1]()) == (None, True)
    keys.revoke(key_id)
    until = time.monotonic() + 30
    while asked[1]():
        assert time.monotonic() < until
