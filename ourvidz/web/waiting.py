"""A request that waits for its job: queued before all others, followed to its end, and cancelled as soon as
nobody waits for it any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import CancelScope
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from ourvidz import dispatch, log
from ourvidz.celery_settings import PRIORITY_SYNC
from ourvidz.errors import (
    Conflict,
    InternalError,
    JobTimeout,
    NotFound,
    OurvidzError,
    WorkerLost,
    WorkerUnavailable,
    by_code,
)
from ourvidz.jobs.job import ChatJob
from ourvidz.ledger.record import Record, StreamItem
from ourvidz.ledger.store import Ledger
from ourvidz.web import sse
from ourvidz.web.events import StreamReader
from ourvidz.wiring import control

CHECK_S = 5.0
"""How often a wait in which nothing happens looks whether anybody is at work for it."""
SILENCE = ""
"""What a wait says when nothing has happened for that long."""

Done = TypeVar("Done")
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of a job, and in `told` what its worker said about it: `generation_time` (seconds),
    `tokens_generated`, `prompt_tokens`, `finish_reason`, which model. A wait that ended at its deadline knows
    only what it has counted itself."""

    text: str
    told: dict[str, Any] = field(default_factory=dict)
    enhanced_prompt: str | None = None

    @property
    def finish_reason(self) -> str:
        """`stop`, `length`, `timeout`, or `error` where the text is not the model's."""
        return str(self.told.get("finish_reason") or ("error" if self.fell_back else "stop"))

    @property
    def fell_back(self) -> bool:
        """Whether this is an original prompt in place of an enhanced one."""
        return self.told.get("enhancement_strategy") == "fallback"


Heard = AsyncGenerator[str | Answer, None]
"""Pieces of text as they are made, `SILENCE` from time to time, and at the end one `Answer`."""


async def wait_for(job: ChatJob) -> Heard:
    """Queue a job and follow it to its end. Closing the generator cancels the job.

    Raises what the job ended with; `WorkerUnavailable` when nobody takes it, `JobTimeout` when it has made no
    text by the deadline. A piece that was given out is never taken back: a streamed job whose worker is lost
    half-way ends as `WorkerLost`.
    """
    deadline_s = control.current().settings.sync_deadline_s
    wait = _Wait(job, control.current().ledger, deadline_s)
    try:
        await run_in_threadpool(wait.submit)
        async with aclosing(wait.follow()) as items:
            async for item in items:
                yield item
    finally:
        if wait.pending:
            with CancelScope(shield=True):
                await run_in_threadpool(_cancel, job.id)


async def answer_of(heard: Heard) -> Answer:
    """The answer at the end of a wait."""
    found: Answer | None = None
    async with aclosing(heard):
        async for item in heard:
            found = item if isinstance(item, Answer) else found
    assert found is not None
    return found


async def unless_gone(request: Request, work: Callable[[], Awaitable[Done]]) -> Done:
    """What `work` comes to. When the client goes away first, the work is cancelled: `ClientDisconnect`."""
    with CancelScope() as scope:
        watching = asyncio.ensure_future(_when_gone(request, scope))
        try:
            return await work()
        finally:
            watching.cancel()
    raise ClientDisconnect


async def as_events(
    heard: Heard,
    written: Callable[[str | Answer], Iterable[bytes]],
    failure: Callable[[OurvidzError], bytes],
) -> AsyncGenerator[bytes, None]:
    """A wait as server-sent events. What fails before the first of them is raised, what fails later is told
    as one more event."""
    speaking = False
    async with aclosing(heard):
        try:
            async for item in heard:
                speaking = True
                for event in (sse.KEEP_ALIVE,) if item == SILENCE else written(item):
                    yield event
        except OurvidzError as failed:
            if not speaking:
                raise
            yield failure(failed)


async def begun(request: Request, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same events, when the first of them is there: what fails before it is answered with its status."""
    first = await unless_gone(request, lambda: anext(events))

    async def all_of_them() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()


class _Wait:
    """One wait for one job."""

    def __init__(self, job: ChatJob, ledger: Ledger, deadline_s: float) -> None:
        self._job = job
        self._ledger = ledger
        self._deadline_s = deadline_s
        self._ends = time.monotonic() + deadline_s
        self._pieces: list[str] = []
        self._tokens = 0
        self._started_at: float | None = None
        self._obstructed = False
        self.pending = False
        """Whether there is a job that goes on when nobody stops it."""

    def submit(self) -> None:
        """Submit the job at the highest priority, with callbacks only where the payload names a URL."""
        suppress_callbacks = self._job.callback_url is None
        dispatch.submit(self._job, priority=PRIORITY_SYNC, suppress_callbacks=suppress_callbacks)
        self.pending = True

    async def follow(self) -> Heard:
        """The job's story, as `wait_for` tells it."""
        async with aclosing(self._items()) as items:
            async for item in items:
                if item is not None and item.kind == "done":
                    break
                if time.monotonic() >= self._ends:
                    yield self._so_far()
                    return
                if item is None:
                    await self._require_workers()
                    yield SILENCE
                elif item.kind == "state":
                    self._note(item)
                elif item.kind == "token" and item.data.get("text"):
                    self._pieces.append(item.data["text"])
                    self._tokens = item.data.get("tokens", self._tokens + 1)
                    yield self._pieces[-1]
        record = await run_in_threadpool(self._ledger.get, self._job.id)
        self.pending = False
        answer = self._ending(record)
        if not answer.fell_back:
            rest = self._rest(answer.text)
            if rest:
                yield rest
        yield answer

    async def _items(self) -> AsyncGenerator[StreamItem | None, None]:
        """The items of the job's stream; None when the next one takes long, or the deadline is there."""
        async with aclosing(StreamReader(self._ledger.follow(self._job.id))) as reader:
            while True:
                timeout_s = min(CHECK_S, max(0.0, self._ends - time.monotonic()))
                try:
                    item = await reader.next_item(timeout_s=timeout_s)
                except TimeoutError:
                    yield None
                    continue
                if item is None:
                    return
                yield item

    def _note(self, item: StreamItem) -> None:
        if item.data.get("status") == "processing" and self._started_at is None:
            self._started_at = time.monotonic()
        if self._pieces and self._job.stream:
            raise WorkerLost("The worker was lost after it had begun to answer.")
        self._pieces.clear()

    async def _require_workers(self) -> None:
        """Raise `WorkerUnavailable` when no worker could claim the queued job at two checks in a row."""
        if self._started_at is not None:
            return
        reason = await run_in_threadpool(self._obstacle)
        if self._obstructed and reason is not None:
            raise WorkerUnavailable(reason)
        self._obstructed = reason is not None

    def _obstacle(self) -> str | None:
        """Why no worker can claim the job now; None when one can."""
        queue = self._job.queue
        if queue in self._ledger.paused():
            return f"{queue} is paused."
        if any(
            each.queue == queue and each.state != "offline" and not each.draining
            for each in self._ledger.workers()
        ):
            return None
        return f"No worker of {queue} is at work."

    def _so_far(self) -> Answer:
        """What there is when time is up. Raises when there is nothing."""
        if self._pieces:
            spent_s = time.monotonic() - (self._started_at or self._ends - self._deadline_s)
            told = {"generation_time": round(spent_s, 3), "tokens_generated": self._tokens}
            return Answer("".join(self._pieces), {**told, "finish_reason": "timeout"})
        if self._started_at is None:
            raise WorkerUnavailable(f"No worker took this request within {self._deadline_s:g} seconds.")
        raise JobTimeout(f"No text came within {self._deadline_s:g} seconds.")

    def _ending(self, record: Record | None) -> Answer:
        if record is None or record.outcome is None:
            raise NotFound("The job was deleted while its answer was waited for.")
        outcome = record.outcome
        if outcome.error is not None:
            error = outcome.error
            kind = by_code().get(error.code, InternalError)
            raise kind(error.message, field=error.field, kind=error.kind)
        text = next((each.metadata["text"] for each in outcome.assets if each.type == "text"), "")
        return Answer(text, outcome.metadata, outcome.enhanced_prompt)

    def _rest(self, text: str) -> str:
        """What a follower of the pieces has not heard of the whole text yet."""
        heard = "".join(self._pieces)
        if text.startswith(heard):
            return text[len(heard) :]
        if self._job.stream and text.strip() != heard.strip():
            # The ledger keeps the last few hundred items: a reader that stood still for long misses some.
            raise InternalError("A part of the answer was lost on its way; the job has all of it.")
        return ""


def _cancel(job_id: str) -> None:
    """Nobody waits for this job any more."""
    try:
        dispatch.cancel(job_id)
    except (Conflict, NotFound):
        return
    except OurvidzError as failed:
        _log.warning("cancel_failed", job_id=job_id, code=failed.code)


async def _when_gone(request: Request, scope: CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
    scope.cancel()
