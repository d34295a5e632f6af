"""Following streams: many followers share two connections, and none misses an item without being told."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from ourvidz.errors import InternalError
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger import following
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import StreamItem

DONE = Outcome(status="completed")
FOLLOWERS = 300
"""More than a connection pool of redis-py holds."""
STREAM_ITEMS = 500
"""Items that a stream keeps; `scripts/lib/stream.lua`."""


@pytest.fixture
def ledger(start_redis):
    """A ledger on a server of its own, whose connections the tests count."""
    ledger = Ledger(start_redis().url)
    yield ledger
    ledger.close()


@pytest.fixture
def client(ledger):
    """A client of the ledger's server."""
    with redis.Redis.from_url(ledger._connection._url, decode_responses=True) as client:
        yield client


def claimed(ledger, job, run=1):
    return ledger.claim(job, run, worker_id="w", lease_s=60, token=f"{job}-{run}")


async def drain(items) -> list[StreamItem]:
    return [item async for item in items]


def stream_tokens(ledger, claim, count):
    """Append tokens, many per call."""
    for start in range(0, count, 50):
        texts = range(start, min(count, start + 50))
        ledger.step(claim, items=[("token", {"text": f"{number} "}) for number in texts])


def test_hundreds_of_followers_share_two_connections(ledger, client, image_job):
    """Each had one of its own, so more than a hundred waiting callers failed."""
    jobs = [f"j{number}" for number in range(FOLLOWERS)]
    for job in jobs:
        ledger.register(image_job(job), priority=6)
    before = len(client.client_list())

    async def follow_all():
        streams = [ledger.follow(job) for job in jobs]
        first = await asyncio.gather(*(anext(stream) for stream in streams))
        connections = len(await asyncio.to_thread(client.client_list)) - before
        rest = [asyncio.ensure_future(drain(stream)) for stream in streams]
        await asyncio.to_thread(lambda: [ledger.end(claimed(ledger, job), outcome=DONE) for job in jobs])
        return first, connections, await asyncio.gather(*rest)

    first, connections, rest = asyncio.run(asyncio.wait_for(follow_all(), 60))
    assert {item.kind for item in first} == {"state"}
    assert connections <= 2
    assert all([item.kind for item in items] == ["state", "done"] for items in rest)


@pytest.mark.parametrize("damage", ["an item", "the stream", "the record"])
def test_a_stream_that_cannot_be_read_ends_only_its_own_follower(ledger, client, image_job, damage):
    """Followers share their reads: one job must not cut off the callers of a hundred others."""
    for job in ("bad", "good"):
        ledger.register(image_job(job), priority=6)
    if damage == "an item":
        client.xadd("ourvidz:stream:bad", {"k": "state", "status": "queued"})
    else:
        name = "ourvidz:stream:bad" if damage == "the stream" else "ourvidz:job:bad"
        client.delete(name)
        client.set(name, "text")

    async def follow_both():
        following = [asyncio.ensure_future(drain(ledger.follow(job))) for job in ("bad", "good")]
        await asyncio.wait({following[0]})
        await asyncio.to_thread(lambda: ledger.end(claimed(ledger, "good"), outcome=DONE))
        return await asyncio.gather(*following, return_exceptions=True)

    error, items = asyncio.run(asyncio.wait_for(follow_both(), 20))
    assert isinstance(error, InternalError)
    assert [item.kind for item in items] == ["state", "state", "done"]


def test_an_item_reaches_its_follower_without_a_poll(ledger, image_job, monkeypatch):
    """It is announced: a text must not arrive in bursts."""
    monkeypatch.setattr(following, "POLL_S", 3600)
    monkeypatch.setattr(following, "TRUSTING_POLL_S", 3600)
    ledger.register(image_job(), priority=6)

    async def follow():
        stream = ledger.follow("job-1")
        await anext(stream)
        for _ in range(5):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)  # the follower waits before the item is written
            if _ == 0:
                claim = await asyncio.to_thread(claimed, ledger, "job-1")
            else:
                await asyncio.to_thread(ledger.step, claim, items=[("token", {"text": "a"})])
            await asyncio.wait_for(waiting, 10)
        await stream.aclose()

    asyncio.run(follow())


def test_an_item_that_was_not_announced_is_found_by_the_next_poll(ledger, client, image_job, monkeypatch):
    """Workers of an older release announce nothing, and announcements of a lost connection are lost."""
    monkeypatch.setattr(following, "POLL_S", 0.02)
    ledger.register(image_job(), priority=6)
    name = ledger._keys.stream("job-1")

    async def follow():
        stream = ledger.follow("job-1")
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await asyncio.to_thread(client.xadd, name, {"k": "token", "d": '{"text": "a"}'})
        item = await asyncio.wait_for(waiting, 10)
        await stream.aclose()
        return item.data

    assert asyncio.run(follow()) == {"text": "a"}


@pytest.mark.parametrize("announced", [True, False])
def test_polls_become_rare_while_every_item_is_announced(ledger, client, image_job, monkeypatch, announced):
    """Thousands of waiting callers would keep a core busy otherwise; a worker that announces nothing must not
    make its callers wait."""
    monkeypatch.setattr(following, "TRUSTING_POLL_S", 0.02)
    monkeypatch.setattr(following, "POLL_S", 0.01)
    monkeypatch.setattr(following, "DISTRUST_S", 0.0)
    ledger.register(image_job(), priority=6)
    name = ledger._keys.stream("job-1")

    async def follow():
        stream = ledger.follow("job-1")
        await anext(stream)
        (hub, _), *_ = ledger._followers._hubs.values()
        monkeypatch.setattr(following, "DISTRUST_S", 3600.0)
        for _ in range(5):
            waiting = asyncio.ensure_future(anext(stream))
            together = client.pipeline(transaction=True).xadd(name, {"k": "token", "d": "{}"})
            await asyncio.to_thread((together.publish(name, "") if announced else together).execute)
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.1)
        trusts = hub._trusts_from <= time.monotonic()
        await stream.aclose()
        return trusts

    assert asyncio.run(follow()) == announced


def test_a_user_who_may_not_publish_changes_no_result(start_redis, image_job, monkeypatch):
    """An access list that names keys only must not make every verb fail."""
    monkeypatch.setattr(following, "POLL_S", 0.02)
    server = start_redis()
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "ours", "on", ">pw", "~*", "+@all", "resetchannels")
    ledger = Ledger(server.url.replace("//", "//ours:pw@"))
    ledger.register(image_job(), priority=6)

    async def follow():
        stream = ledger.follow("job-1")
        kinds = [(await anext(stream)).kind]
        claim = await asyncio.to_thread(claimed, ledger, "job-1")
        await asyncio.to_thread(ledger.end, claim, outcome=DONE)
        return kinds + [item.kind async for item in stream]

    assert asyncio.run(asyncio.wait_for(follow(), 10)) == ["state", "state", "done"]
    ledger.close()


class TestGaps:
    def test_a_reader_that_resumes_behind_trimmed_items_gets_a_gap_and_the_state(self, ledger, chat_job):
        """It would take the middle of a text for its continuation."""
        ledger.register(chat_job("a"), priority=6)
        claim = claimed(ledger, "a")
        ledger.step(claim, progress=40, stage="text")
        resumed_at = ledger.stream("a")[-1].id
        stream_tokens(ledger, claim, STREAM_ITEMS + 200)
        ledger.end(claim, outcome=DONE)
        received = asyncio.run(drain(ledger.follow("a", after=resumed_at)))
        gap, state, progress, token, *_, done = received
        assert (gap.kind, gap.data, gap.id) == ("gap", {"after": resumed_at}, resumed_at)
        assert state.data == {"status": "completed", "run": 1, "attempt": 1, "stage": None}
        assert progress.data["progress"] == 100.0
        assert (state.id, progress.id) == (resumed_at, resumed_at)
        assert (token.kind, done.kind) == ("token", "done")
        assert [item.kind for item in received].count("gap") == 1

    def test_a_reader_from_the_start_gets_a_gap_where_the_beginning_is_gone(self, ledger, chat_job):
        """And none where it is there."""
        ledger.register(chat_job("a"), priority=6)
        claim = claimed(ledger, "a")
        stream_tokens(ledger, claim, STREAM_ITEMS - 10)
        ledger.end(claim, outcome=DONE)
        assert "gap" not in {item.kind for item in asyncio.run(drain(ledger.follow("a")))}
        ledger.register(chat_job("b"), priority=6)
        claim = claimed(ledger, "b")
        stream_tokens(ledger, claim, STREAM_ITEMS + 200)
        ledger.end(claim, outcome=DONE)
        assert [item.kind for item in asyncio.run(drain(ledger.follow("b")))][:3] == [
            "gap",
            "state",
            "progress",
        ]

    def test_a_slow_reader_gets_the_gap_in_the_middle(self, ledger, chat_job):
        """Its connection is slower than the model."""
        ledger.register(chat_job("a"), priority=6)
        claim = claimed(ledger, "a")

        async def read_slowly():
            stream = ledger.follow("a")
            kinds = [(await anext(stream)).kind, (await anext(stream)).kind]
            await asyncio.to_thread(stream_tokens, ledger, claim, STREAM_ITEMS + 200)
            await asyncio.to_thread(ledger.end, claim, outcome=DONE)
            return kinds + [item.kind async for item in stream]

        kinds = asyncio.run(read_slowly())
        assert kinds[:5] == ["state", "state", "gap", "state", "progress"]
        assert (kinds.count("gap"), kinds[-1]) == (1, "done")

    def test_a_preview_that_was_replaced_is_no_gap(self, ledger, image_job):
        """Only the latest preview is kept; a reader that resumes after an earlier one has missed nothing."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger, "job-1")
        ledger.step(claim, items=[("preview", {"webp": "UklGRg=="})])
        resumed_at = ledger.stream("job-1")[-1].id
        for number in range(1, 301):
            ledger.step(claim, progress=number / 4, items=[("preview", {"webp": "UklGRg=="})])
        ledger.end(claim, outcome=DONE)
        kinds = [item.kind for item in asyncio.run(drain(ledger.follow("job-1", after=resumed_at)))]
        assert "gap" not in kinds
        assert kinds[-1] == "done"
