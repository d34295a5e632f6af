"""Following job streams: all followers of an event loop share two connections, however many they are.

Every item of a stream is announced on a channel with the stream's name (`scripts/lib/stream.lua`). One
connection listens to the channels of the followed jobs, another reads records and streams in batches. The
announcements say only that something is new: what counts is read from the stream, so one that is lost costs a
delay of one poll and no item.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any

from ourvidz import log
from ourvidz.ledger.store import Ledger
from ourvidz.ledger.streams import STREAM_START, StreamClient, checked_item_id
from ourvidz.records.record import FINISHED, StreamItem
from ourvidz.records.streams import StreamRequest, StreamSnapshot

READ_COUNT = 200
"""Items that one read returns at most; fewer than a stream keeps when it is trimmed."""
READS_PER_BATCH = 128
"""Reads that are sent to the server together."""
POLL_S = 1.0
"""A follower reads its stream this often without an announcement, as long as some may be missing: in the
first minute of a hub, and for a minute after one was missed."""
TRUSTING_POLL_S = 10.0
"""The same while every item has been announced."""
DISTRUST_S = 60.0
POLLS_PER_S = 500.0
"""Polls of one hub a second. With more followers each polls less often, down to `TRUSTING_POLL_S`:
two thousand polls a second keep half a core busy."""
POLL_SPREAD = 0.25
"""Share by which the time to a poll varies. Followers that came together would poll together, and an
announced item would wait behind all of their reads."""
LISTEN_TIMEOUT_S = 1.0
RECONNECT_DELAY_S = 0.5
CANCEL_AGAIN_S = 0.05

_log = log.get(__name__)


class Followers:
    """The followers of a process. They share one hub per event loop, which exists as long as it has some."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._hubs: dict[asyncio.AbstractEventLoop, tuple[StreamHub, int]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def follow(self, job_id: str, *, after: str = STREAM_START) -> AsyncGenerator[StreamItem, None]:
        """The items after an item id as they come, until the `done` of the current run. Where items after it
        were trimmed, a `gap` item comes first, and the current state as a `state` and a `progress` item.

        Any number of followers share two connections. Raises `WorkerUnavailable` when the server stays away,
        `InvalidParameters` when `after` is no item id.
        """
        last = checked_item_id(after)
        async with self.connected() as hub, aclosing(hub.follow(job_id, last)) as items:
            async for item in items:
                yield item

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[StreamHub]:
        """The hub of the running event loop; its users share it, and the last one closes it.

        A shim holds it as long as it runs: two connections that were opened for each lone caller took a fifth
        of the time to the first token. Nothing is raised while the server is away.
        """
        loop = asyncio.get_running_loop()
        hub, users = self._hubs.get(loop) or (StreamHub(self._ledger.open_stream_client()), 0)
        self._hubs[loop] = (hub, users + 1)
        try:
            yield hub
        finally:
            hub, users = self._hubs.pop(loop)
            if users > 1:
                self._hubs[loop] = (hub, users - 1)
            else:
                # A task: a follower that is cancelled meanwhile must not leave connections open.
                closing = loop.create_task(hub.aclose())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                await asyncio.shield(closing)


class StreamHub:
    """Reads the streams of many jobs for the followers of one event loop."""

    def __init__(self, client: StreamClient) -> None:
        self._client = client
        self._listener = _Listener(client)
        self._reads: list[tuple[StreamRequest, asyncio.Future[StreamSnapshot]]] = []
        self._requested = asyncio.Event()
        self._reader = asyncio.ensure_future(self._serve_reads())
        self._trusts_from = 0.0
        self._distrust()
        self._closed = False

    async def follow(self, job_id: str, after: str) -> AsyncGenerator[StreamItem, None]:
        """Yield the items after an item id as they come, until the `done` of the current run.

        Where items after it have been trimmed, a `gap` item comes first, with the position before it as its
        id, and then the current state of the job as a `state` and a `progress` item under the same id.
        """
        last, is_poll, unannounced = after, False, False
        with self._listener.watching(self._client.channel(job_id)) as changed:
            while True:
                announced = changed.is_set()
                changed.clear()
                snapshot = await self._read(job_id, last)
                if unannounced and not (announced or changed.is_set()):
                    # Not even a round trip later.
                    self._distrust()
                unannounced, is_poll = is_poll and bool(snapshot.items), False
                if snapshot.items and await self._has_gap(job_id, last, snapshot.items):
                    for item in _gap_items(last, snapshot.state):
                        yield item
                for item in snapshot.items:
                    last = item.id
                    yield item
                    if item.kind == "done" and await self._ends_last_run(job_id, item, snapshot):
                        return
                has_ended = snapshot.state["run"] is None or snapshot.state["status"] in FINISHED
                if not snapshot.items and has_ended:
                    return
                if len(snapshot.items) == READ_COUNT or unannounced or (snapshot.items and has_ended):
                    # There may be more, or there may not: the state was read before the items.
                    continue
                is_poll = not await self._wait_for(changed)

    async def _wait_for(self, changed: asyncio.Event) -> bool:
        """Wait for an announcement; False when it is time to poll."""
        trusts = self._listener.connected and time.monotonic() >= self._trusts_from
        try:
            async with asyncio.timeout(poll_delay_s(self._listener.channels, trusts=trusts)):
                return await changed.wait()
        except TimeoutError:
            return False

    def _distrust(self) -> None:
        self._trusts_from = time.monotonic() + DISTRUST_S

    async def aclose(self) -> None:
        """Stop both tasks and close the connections."""
        self._closed = True
        await self._listener.aclose()
        await _cancel(self._reader)
        await self._client.aclose()

    async def _has_gap(self, job_id: str, last: str, items: list[StreamItem]) -> bool:
        """Whether items between a position and the items read after it were trimmed.

        A stream begins with the state `queued`. Trimming leaves more items than one read returns, so only a
        full read can follow a gap.
        """
        if last == STREAM_START:
            first = items[0]
            return not (first.kind == "state" and first.data["status"] == "queued")
        if len(items) < READ_COUNT:
            return False
        oldest = (await self._read(job_id, STREAM_START, count=1)).items
        return bool(oldest) and _order(oldest[0].id) > _order(last)

    async def _ends_last_run(self, job_id: str, done: StreamItem, snapshot: StreamSnapshot) -> bool:
        """Whether no later run was opened after this end. One that was opened has an item after it."""
        if done is snapshot.items[-1] and snapshot.state["run"] == str(done.data["run"]):
            return True
        run = (await self._read(job_id, done.id, count=1)).state["run"]
        return run is None or int(run) == done.data["run"]

    async def _read(self, job_id: str, after: str, count: int = READ_COUNT) -> StreamSnapshot:
        """Read with the next batch. Raises `WorkerUnavailable` when the server stays away."""
        answer: asyncio.Future[StreamSnapshot] = asyncio.get_running_loop().create_future()
        self._reads.append((StreamRequest(job_id, after, count), answer))
        self._requested.set()
        return await answer

    async def _serve_reads(self) -> None:
        while not self._closed:
            await self._requested.wait()
            self._requested.clear()
            while self._reads:
                batch, self._reads = self._reads[:READS_PER_BATCH], self._reads[READS_PER_BATCH:]
                await self._serve(batch)

    async def _serve(self, batch: list[tuple[StreamRequest, asyncio.Future[StreamSnapshot]]]) -> None:
        try:
            snapshots: list[Any] = await self._client.read([request for request, _ in batch])
        except Exception as error:  # noqa: BLE001  each follower raises it
            snapshots = [error.with_traceback(None)] * len(batch)
        for (_, answer), snapshot in zip(batch, snapshots, strict=True):
            if answer.done():
                continue
            if isinstance(snapshot, Exception):
                answer.set_exception(snapshot)
            else:
                answer.set_result(snapshot)


class _Listener:
    """Listens to the announcements of many streams on one connection, and wakes their followers."""

    def __init__(self, client: StreamClient) -> None:
        self._client = client
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._changes: dict[str, bool] = {}
        """Channels to subscribe to (true) or to leave."""
        self._changed = asyncio.Event()
        self._closed = False
        self.connected = False
        """Whether announcements are being received."""
        self._task = asyncio.ensure_future(self._listen())

    @contextmanager
    def watching(self, channel: str) -> Iterator[asyncio.Event]:
        """Yields an event that is set at every announcement, and whenever one may have been missed."""
        changed = asyncio.Event()
        self._watchers.setdefault(channel, set()).add(changed)
        self._change(channel, subscribed=True)
        try:
            yield changed
        finally:
            watchers = self._watchers[channel]
            watchers.discard(changed)
            if not watchers:
                del self._watchers[channel]
                self._change(channel, subscribed=False)

    @property
    def channels(self) -> int:
        """The number of streams that are followed."""
        return len(self._watchers)

    async def aclose(self) -> None:
        """Stop listening."""
        self._closed = True
        await _cancel(self._task)

    def _change(self, channel: str, *, subscribed: bool) -> None:
        self._changes[channel] = subscribed
        self._changed.set()

    async def _listen(self) -> None:
        lost = False
        while not self._closed:
            pubsub = self._client.pubsub()
            updating = None
            try:
                # A connection without any subscription cannot be listened to.
                await pubsub.subscribe("", *self._watchers)
                updating = asyncio.ensure_future(self._update(pubsub))
                self.connected, lost = True, False
                while not self._closed:
                    message = await pubsub.get_message(timeout=LISTEN_TIMEOUT_S)
                    if updating.done():
                        updating.result()
                    if message is not None:
                        # Also at the confirmation of a subscription: items may have come before it.
                        self._wake(message["channel"])
            except Exception as error:  # noqa: BLE001  followers poll meanwhile, and report a lasting outage
                if not lost:
                    _log.info("announcements_lost", error=type(error).__name__)
                lost = True
            finally:
                self.connected = False
                if updating is not None:
                    await _cancel(updating)
                with suppress(Exception):
                    await pubsub.aclose()
            for channel in list(self._watchers):
                self._wake(channel)
            if not self._closed:
                await asyncio.sleep(RECONNECT_DELAY_S)

    async def _update(self, pubsub: Any) -> None:
        """Send the changes of what is followed."""
        while not self._closed:
            await self._changed.wait()
            self._changed.clear()
            changes, self._changes = self._changes, {}
            joined = [channel for channel, subscribed in changes.items() if subscribed]
            left = [channel for channel, subscribed in changes.items() if not subscribed]
            if joined:
                await pubsub.subscribe(*joined)
            if left:
                await pubsub.unsubscribe(*left)

    def _wake(self, channel: str) -> None:
        for changed in self._watchers.get(channel, ()):
            changed.set()


def poll_delay_s(streams: int, *, trusts: bool) -> float:
    """Seconds until a follower reads its stream without an announcement, on a hub of so many streams."""
    delay_s = TRUSTING_POLL_S if trusts else min(TRUSTING_POLL_S, max(POLL_S, streams / POLLS_PER_S))
    return delay_s * random.uniform(1 - POLL_SPREAD, 1 + POLL_SPREAD)


def _gap_items(last: str, state: dict[str, str | None]) -> list[StreamItem]:
    """A `gap` item and the state of the job after it; only the gap where the job was deleted."""
    gap = StreamItem(last, "gap", {"after": last})
    if state["run"] is None:
        return [gap]
    stage = state["stage"] or None
    numbers = {"run": int(state["run"]), "attempt": int(state["attempt"] or 0)}
    status = StreamItem(last, "state", {"status": state["status"], **numbers, "stage": stage})
    progress = StreamItem(last, "progress", {"progress": float(state["progress"] or 0), "stage": stage})
    return [gap, status, progress]


def _order(item_id: str) -> tuple[int, int]:
    """An item id as numbers; `5` is `5-0`."""
    milliseconds, _, sequence = item_id.partition("-")
    return int(milliseconds), int(sequence or 0)


async def _cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it has ended. Repeated: between two of its own timeouts the Redis client
    may take a cancellation for one of them and go on."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)
    if not task.cancelled():
        task.exception()  # Retrieved, or asyncio logs it.
