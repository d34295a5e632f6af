"""Following streams: many followers share two connections, and none misses an item without being told."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis
from redis.backoff import NoBackoff

from ourvidz import following
from ourvidz.errors import InternalError, OutOfMemory, WorkerUnavailable
from ourvidz.following import Followers
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import StreamItem
from tests.factories import chat_job, image_job
from tests.monitor import monitored

DONE = Outcome(status="completed")
FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))
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
def followers(ledger):
    """The followers of the ledger's streams."""
    return Followers(ledger)


@pytest.fixture
def client(ledger):
    """A client of the ledger's server."""
    with redis.Redis.from_url(ledger.url, decode_responses=True) as client:
        yield client


def claimed(ledger, job, run=1):
    return ledger.claim(job, run, worker_id="w", lease_s=60, token=f"{job}-{run}")


async def drain(items) -> list[StreamItem]:
    return [item async for item in items]


def run_to(ledger, job_id, outcome, run=1):
    """Claim a job and end it."""
    assert ledger.end(claimed(ledger, job_id, run), outcome=outcome)


def collect(followers, job_id, after="0", limit_s=10):
    """All items that `follow` yields within `limit_s` seconds."""
    return asyncio.run(asyncio.wait_for(drain(followers.follow(job_id, after=after)), limit_s))


def stream_tokens(ledger, claim, count):
    """Append tokens, many per call."""
    for start in range(0, count, 50):
        texts = range(start, min(count, start + 50))
        ledger.step(claim, items=[("token", {"text": f"{number} "}) for number in texts])


def test_hundreds_of_followers_share_two_connections(ledger, followers, client):
    """Each had one of its own, so more than a hundred waiting callers failed."""
    jobs = [f"j{number}" for number in range(FOLLOWERS)]
    for job in jobs:
        ledger.register(image_job(job), priority=6)
    before = len(client.client_list())

    async def follow_all():
        streams = [followers.follow(job) for job in jobs]
        first = await asyncio.gather(*(anext(stream) for stream in streams))
        connections = len(await asyncio.to_thread(client.client_list)) - before
        rest = [asyncio.ensure_future(drain(stream)) for stream in streams]
        await asyncio.to_thread(lambda: [ledger.end(claimed(ledger, job), outcome=DONE) for job in jobs])
        return first, connections, await asyncio.gather(*rest)

    first, connections, rest = asyncio.run(asyncio.wait_for(follow_all(), 60))
    assert {item.kind for item in first} == {"state"}
    assert connections <= 2
    assert all([item.kind for item in items] == ["state", "done"] for items in rest)


def test_callers_of_a_connected_process_open_no_connections(ledger, followers, client):
    """One lone caller after the other had to wait until two connections were open."""
    for job in ("a", "b", "c"):
        ledger.register(image_job(job), priority=6)
        run_to(ledger, job, DONE)

    async def follow_in_turn() -> list[int]:
        counts = []
        async with followers.connected():
            for job in ("a", "b", "c"):
                assert [item.kind for item in await drain(followers.follow(job))][-1] == "done"
                stats = await asyncio.to_thread(client.info, "stats")
                counts.append(stats["total_connections_received"])
        return counts

    first, *others = asyncio.run(asyncio.wait_for(follow_in_turn(), 20))
    assert others == [first, first]


def test_a_process_connects_while_its_server_is_away(start_redis):
    """A shim starts and answers 503 before its server does."""
    server = start_redis()
    ledger = Ledger(server.url)
    server.kill()

    async def follow() -> list[str]:
        followers = Followers(ledger)
        async with followers.connected():
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(ledger.register, image_job(), priority=6)
            await asyncio.to_thread(run_to, ledger, "job-1", DONE)
            return [item.kind for item in await drain(followers.follow("job-1"))]

    assert asyncio.run(asyncio.wait_for(follow(), 30)) == ["state", "state", "done"]
    ledger.close()


@pytest.mark.parametrize("damage", ["an item", "the stream", "the record"])
def test_a_stream_that_cannot_be_read_ends_only_its_own_follower(ledger, followers, client, damage):
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
        pending = [asyncio.ensure_future(drain(followers.follow(job))) for job in ("bad", "good")]
        await asyncio.wait({pending[0]})
        await asyncio.to_thread(lambda: ledger.end(claimed(ledger, "good"), outcome=DONE))
        return await asyncio.gather(*pending, return_exceptions=True)

    error, items = asyncio.run(asyncio.wait_for(follow_both(), 20))
    assert isinstance(error, InternalError)
    assert [item.kind for item in items] == ["state", "state", "done"]


def test_an_item_reaches_its_follower_without_a_poll(ledger, followers, monkeypatch):
    """It is announced: a text must not arrive in bursts."""
    monkeypatch.setattr(following, "POLL_S", 3600)
    monkeypatch.setattr(following, "TRUSTING_POLL_S", 3600)
    ledger.register(image_job(), priority=6)

    async def follow():
        stream = followers.follow("job-1")
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


def test_an_item_that_was_not_announced_is_found_by_the_next_poll(ledger, followers, client, monkeypatch):
    """Workers of an older release announce nothing, and announcements of a lost connection are lost."""
    monkeypatch.setattr(following, "POLL_S", 0.02)
    ledger.register(image_job(), priority=6)
    name = ledger._keys.stream("job-1")

    async def follow():
        stream = followers.follow("job-1")
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await asyncio.to_thread(client.xadd, name, {"k": "token", "d": '{"text": "a"}'})
        item = await asyncio.wait_for(waiting, 10)
        await stream.aclose()
        return item.data

    assert asyncio.run(follow()) == {"text": "a"}


@pytest.mark.parametrize("announced", [True, False])
def test_polls_become_rare_while_every_item_is_announced(ledger, followers, client, monkeypatch, announced):
    """Thousands of waiting callers would keep a core busy otherwise; a worker that announces nothing must not
    make its callers wait."""
    monkeypatch.setattr(following, "TRUSTING_POLL_S", 0.02)
    monkeypatch.setattr(following, "POLL_S", 0.01)
    monkeypatch.setattr(following, "DISTRUST_S", 0.0)
    ledger.register(image_job(), priority=6)
    name = ledger._keys.stream("job-1")

    async def follow():
        stream = followers.follow("job-1")
        await anext(stream)
        (hub, _), *_ = followers._hubs.values()
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


def test_many_followers_poll_seldom_and_not_together():
    """Two thousand kept half a core busy, and an announced item waited behind all of their reads."""
    delays = [following.poll_delay_s(2000, trusts=False) for _ in range(200)]
    assert min(delays) >= 2000 / following.POLLS_PER_S * (1 - following.POLL_SPREAD)
    assert max(delays) - min(delays) > following.POLL_SPREAD
    few = [following.poll_delay_s(3, trusts=False) for _ in range(200)]
    assert max(few) <= following.POLL_S * (1 + following.POLL_SPREAD)
    assert following.poll_delay_s(10**6, trusts=False) <= following.TRUSTING_POLL_S * (
        1 + following.POLL_SPREAD
    )


def test_a_user_who_may_not_publish_changes_no_result(start_redis, monkeypatch):
    """An access list that names keys only must not make every verb fail."""
    monkeypatch.setattr(following, "POLL_S", 0.02)
    server = start_redis()
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "ours", "on", ">pw", "~*", "+@all", "resetchannels")
    ledger = Ledger(server.url.replace("//", "//ours:pw@"))
    ledger.register(image_job(), priority=6)

    async def follow():
        stream = Followers(ledger).follow("job-1")
        kinds = [(await anext(stream)).kind]
        claim = await asyncio.to_thread(claimed, ledger, "job-1")
        await asyncio.to_thread(ledger.end, claim, outcome=DONE)
        return kinds + [item.kind async for item in stream]

    assert asyncio.run(asyncio.wait_for(follow(), 10)) == ["state", "state", "done"]
    ledger.close()


def test_a_follower_gets_all_items_and_stops_when_the_job_ends(ledger, followers):
    """`follow` returns after the `done` item."""
    ledger.register(image_job(), priority=6)

    async def follow_while_running():
        items = []
        stream = followers.follow("job-1")
        items.append(await anext(stream))
        claim = await asyncio.to_thread(ledger.claim, "job-1", 1, worker_id="w", lease_s=10, token="t")
        items.append(await anext(stream))
        await asyncio.to_thread(ledger.step, claim, progress=10)
        await asyncio.to_thread(ledger.end, ledger.get("job-1"), outcome=DONE)
        items += [item async for item in stream]
        return items

    items = asyncio.run(asyncio.wait_for(follow_while_running(), 10))
    assert [item.kind for item in items] == ["state", "state", "progress", "done"]
    assert items == ledger.stream("job-1")


def test_a_follower_of_an_ended_job_gets_the_remaining_items(ledger, followers):
    """`follow` returns at once instead of waiting for further items."""
    ledger.register(image_job(), priority=6)
    run_to(ledger, "job-1", DONE)
    items = ledger.stream("job-1")
    assert collect(followers, "job-1", after=items[1].id) == items[2:]
    assert collect(followers, "job-1", after=items[-1].id) == []
    assert collect(followers, "nobody") == []


def test_the_end_of_an_earlier_run_does_not_stop_a_follower(ledger, followers):
    """A follower of a reopened job gets the items of the next run."""
    ledger.register(image_job(), priority=6)
    run_to(ledger, "job-1", FAILED)
    ledger.reopen("job-1", priority=6)
    run_to(ledger, "job-1", DONE, run=2)
    items = collect(followers, "job-1")
    assert [item.data["run"] for item in items if item.kind == "done"] == [1, 2]


def test_several_followers_share_an_event_loop(ledger, followers):
    """Closing one follower does not close the connection of the others."""
    ledger.register(image_job(), priority=6)

    async def follow_while_running():
        async def read_all_items():
            return [item async for item in followers.follow("job-1")]

        others = [asyncio.create_task(read_all_items()) for _ in range(3)]
        closed_early = followers.follow("job-1")
        await anext(closed_early)
        await closed_early.aclose()
        await asyncio.to_thread(run_to, ledger, "job-1", DONE)
        return await asyncio.gather(*others)

    streams = asyncio.run(asyncio.wait_for(follow_while_running(), 10))
    assert all(each == ledger.stream("job-1") for each in streams)


def test_a_follower_continues_after_a_restart(start_redis):
    """An open event stream resumes when the server is reachable again."""
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    ledger = Ledger(server.url)
    ledger.register(image_job(), priority=6)

    async def follow_over_restart() -> list[str]:
        follower = Followers(ledger).follow("job-1")
        kinds = [(await anext(follower)).kind]
        server.kill()
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(ledger.end, ledger.get("job-1"), outcome=FAILED)
        return kinds + [item.kind async for item in follower]

    assert asyncio.run(asyncio.wait_for(follow_over_restart(), 20)) == ["state", "done"]
    ledger.close()


def test_a_long_outage_raises_an_error_with_a_readable_message(monkeypatch):
    """The event route closes the stream, and a caller that waits gets 503."""
    monkeypatch.setattr("ourvidz.ledger.connection.PATIENT_RETRIES", (NoBackoff(), 1))
    ledger = Ledger("redis://127.0.0.1:1/0")
    with pytest.raises(WorkerUnavailable, match="the job store cannot be reached"):
        asyncio.run(anext(Followers(ledger).follow("job-1")))


class TestGaps:
    def test_a_reader_that_resumes_behind_trimmed_items_gets_a_gap_and_the_state(self, ledger, followers):
        """It would take the middle of a text for its continuation."""
        ledger.register(chat_job(job_id="a"), priority=6)
        claim = claimed(ledger, "a")
        ledger.step(claim, progress=40, stage="text")
        resumed_at = ledger.stream("a")[-1].id
        stream_tokens(ledger, claim, STREAM_ITEMS + 200)
        ledger.end(claim, outcome=DONE)
        received = asyncio.run(drain(followers.follow("a", after=resumed_at)))
        gap, state, progress, token, *_, done = received
        assert (gap.kind, gap.data, gap.id) == ("gap", {"after": resumed_at}, resumed_at)
        assert state.data == {"status": "completed", "run": 1, "attempt": 1, "stage": None}
        assert progress.data["progress"] == 100.0
        assert (state.id, progress.id) == (resumed_at, resumed_at)
        assert (token.kind, done.kind) == ("token", "done")
        assert [item.kind for item in received].count("gap") == 1

    def test_a_reader_from_the_start_gets_a_gap_where_the_beginning_is_gone(self, ledger, followers):
        """And none where it is there."""
        ledger.register(chat_job(job_id="a"), priority=6)
        claim = claimed(ledger, "a")
        stream_tokens(ledger, claim, STREAM_ITEMS - 10)
        ledger.end(claim, outcome=DONE)
        assert "gap" not in {item.kind for item in asyncio.run(drain(followers.follow("a")))}
        ledger.register(chat_job(job_id="b"), priority=6)
        claim = claimed(ledger, "b")
        stream_tokens(ledger, claim, STREAM_ITEMS + 200)
        ledger.end(claim, outcome=DONE)
        assert [item.kind for item in asyncio.run(drain(followers.follow("b")))][:3] == [
            "gap",
            "state",
            "progress",
        ]

    def test_a_slow_reader_gets_the_gap_in_the_middle(self, ledger, followers):
        """Its connection is slower than the model."""
        ledger.register(chat_job(job_id="a"), priority=6)
        claim = claimed(ledger, "a")

        async def read_slowly():
            stream = followers.follow("a")
            kinds = [(await anext(stream)).kind, (await anext(stream)).kind]
            await asyncio.to_thread(stream_tokens, ledger, claim, STREAM_ITEMS + 200)
            await asyncio.to_thread(ledger.end, claim, outcome=DONE)
            return kinds + [item.kind async for item in stream]

        kinds = asyncio.run(read_slowly())
        assert kinds[:5] == ["state", "state", "gap", "state", "progress"]
        assert (kinds.count("gap"), kinds[-1]) == (1, "done")

    def test_a_preview_that_was_replaced_is_no_gap(self, ledger, followers):
        """Only the latest preview is kept; a reader that resumes after an earlier one has missed nothing."""
        ledger.register(image_job(), priority=6)
        claim = claimed(ledger, "job-1")
        ledger.step(claim, items=[("preview", {"webp": "UklGRg=="})])
        resumed_at = ledger.stream("job-1")[-1].id
        for number in range(1, 301):
            ledger.step(claim, progress=number / 4, items=[("preview", {"webp": "UklGRg=="})])
        ledger.end(claim, outcome=DONE)
        kinds = [item.kind for item in asyncio.run(drain(followers.follow("job-1", after=resumed_at)))]
        assert "gap" not in kinds
        assert kinds[-1] == "done"


def test_an_announced_item_is_read_once(ledger, followers):
    """Every token of a text is an item: a second read after each took half of the reading shim's time."""
    ledger.register(image_job("j"), priority=6)
    claim = claimed(ledger, "j")

    async def follow() -> int:
        kinds: asyncio.Queue[str] = asyncio.Queue()

        async def put_kinds() -> None:
            async for item in followers.follow("j"):
                await kinds.put(item.kind)

        async def stream(tokens: int) -> None:
            for _ in range(tokens):
                await asyncio.to_thread(ledger.step, claim, items=[("token", {"text": "a"})])
                assert await kinds.get() == "token"

        following_j = asyncio.ensure_future(put_kinds())
        assert [await kinds.get() for _ in range(2)] == ["state", "state"]
        # After the first token the subscription is confirmed, and the reading that it causes is over.
        await stream(1)
        with monitored(ledger.url) as seen:
            await stream(5)
            await asyncio.to_thread(ledger.end, claim, outcome=DONE)
            await following_j
        return [command.split(" ")[0] for command in seen.commands].count("XRANGE")

    # One more where an announcement comes after the read that it announces.
    assert 6 <= asyncio.run(asyncio.wait_for(follow(), 20)) <= 8
