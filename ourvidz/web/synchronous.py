"""Synchronous requests: submit a text job, stream its text, cancel the job if the client disconnects."""

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
from ourvidz.following import Followers
from ourvidz.jobs.job import ChatJob
from ourvidz.ledger.store import Ledger
from ourvidz.limits.callers import CallerLimits
from ourvidz.records.record import Record, StreamItem
from ourvidz.web import sse
from ourvidz.web.callers import Stop, open_callers
from ourvidz.web.events import StreamReader
from ourvidz.web.obstacles import QueueObstacles
from ourvidz.wiring import control

IDLE_S = 5.0
"""After so long without an item a stream yields `IDLE`, and availability of workers is checked."""
IDLE = ""

_LOST_PART = "A part of the answer was lost on its way; the job has all of it."

T = TypeVar("T")
_log = log.get(__name__)
_obstacles = QueueObstacles()


@dataclass(frozen=True, slots=True)
class TextResult:
    """The whole text of a job, and its metadata: `generation_time` (seconds), `tokens_generated`,
    `prompt_tokens`, `finish_reason`, the model's name and type. A result that was cut off at the deadline has
    the first two and `finish_reason` only."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    enhanced_prompt: str | None = None

    @property
    def finish_reason(self) -> str:
        """`stop`, `length`, `timeout`, or `error` where the text is not the model's."""
        return str(self.metadata.get("finish_reason") or ("error" if self.is_fallback else "stop"))

    @property
    def is_fallback(self) -> bool:
        """Whether the original prompt stands in for an enhanced one."""
        return self.metadata.get("enhancement_strategy") == "fallback"


TextStream = AsyncGenerator[str | TextResult, None]
"""Yields parts of a text as they are generated, `IDLE` while there are none, and one `TextResult` last."""


async def stream_text(job: ChatJob, limits: CallerLimits) -> TextStream:
    """Submit a job and yield its text. Closing the generator cancels the job. `limits` are the caller's.

    Raises the error that the job failed with, `WorkerUnavailable` when no worker claims it or the shim stops,
    `JobTimeout` when it has generated no text by the deadline, and `WorkerLost` when a job that streams loses
    its worker after the first part: another attempt would write another text.
    """
    with open_callers.wait() as stop:
        app = control.current()
        follower = _JobFollower(job, app.ledger, app.followers, app.settings.sync_limit_s, stop)
        try:
            await run_in_threadpool(follower.submit, limits)
            async with aclosing(follower.follow()) as parts:
                async for part in parts:
                    yield part
        finally:
            if follower.unfinished:
                with CancelScope(shield=True):
                    await run_in_threadpool(_cancel_job, job.id)


async def read_result(stream: TextStream) -> TextResult:
    """Read a stream to its end; return the result."""
    result: TextResult | None = None
    async with aclosing(stream):
        async for item in stream:
            result = item if isinstance(item, TextResult) else result
    assert result is not None
    return result


async def cancel_on_disconnect(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Await `work()` and return its value. If the client disconnects first, cancel it and raise
    `ClientDisconnect`."""
    with CancelScope() as scope:
        watching = asyncio.ensure_future(_cancel_at_disconnect(request, scope))
        try:
            return await work()
        finally:
            watching.cancel()
    raise ClientDisconnect


async def encode_events(
    stream: TextStream,
    encode_item: Callable[[str | TextResult], Iterable[bytes]],
    encode_error: Callable[[OurvidzError], bytes],
) -> AsyncGenerator[bytes, None]:
    """Yield a stream as server-sent events.

    An error before the first item is raised; a later one is one more event, because the response has begun.
    """
    has_started = False
    async with aclosing(stream):
        try:
            async for item in stream:
                has_started = True
                for event in (sse.KEEP_ALIVE,) if item == IDLE else encode_item(item):
                    yield event
        except OurvidzError as error:
            if not has_started:
                raise
            yield encode_error(error)


async def await_first_event(
    request: Request, events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """Wait for the first event, then return a generator of all events.

    An error before the first event is raised here, while the response can still have the error's status. If
    the client disconnects before, `events` is cancelled and `ClientDisconnect` raised.
    """
    first = await cancel_on_disconnect(request, lambda: anext(events))

    async def all_events() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_events()


class _JobFollower:
    """Submits one job and follows its stream until it ends or the deadline passes."""

    def __init__(
        self, job: ChatJob, ledger: Ledger, followers: Followers, deadline_s: float, stop: Stop
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._followers = followers
        self._stop = stop
        self._deadline_s = deadline_s
        self._deadline_at = time.monotonic() + deadline_s
        self._parts: list[str] = []
        self._tokens = 0
        self._claimed_at: float | None = None
        self._was_obstructed = False
        self._has_gap = False
        """Whether parts were trimmed from the job's stream before they were read."""
        self.unfinished = False
        """Whether a job was submitted that has not ended: it must be cancelled."""

    def submit(self, limits: CallerLimits) -> None:
        """Submit the job at the highest priority, with callbacks only where the payload names a URL."""
        suppress_callbacks = self._job.callback_url is None
        admission = dispatch.submit(
            self._job,
            priority=PRIORITY_SYNC,
            suppress_callbacks=suppress_callbacks,
            limits=limits.for_job,
        )
        limits.note(admission.allowances)
        self.unfinished = True

    async def follow(self) -> TextStream:
        """Yield the parts of the text and the result; see `stream_text`."""
        async with aclosing(self._items()) as items:
            async for item in items:
                if item is not None and item.kind == "done":
                    break
                if time.monotonic() >= self._deadline_at:
                    yield self._partial_result()
                    return
                if item is None:
                    await self._require_workers()
                    yield IDLE
                elif item.kind == "gap":
                    self._on_gap()
                elif item.kind == "state":
                    self._on_state(item)
                elif item.kind == "token" and item.data.get("text") and not self._has_gap:
                    self._parts.append(item.data["text"])
                    self._tokens = item.data.get("tokens", self._tokens + 1)
                    yield self._parts[-1]
        record = await run_in_threadpool(self._ledger.get, self._job.id)
        self.unfinished = False
        result = _result_of(record)
        if not result.is_fallback:
            rest = self._rest_of(result.text)
            if rest:
                yield rest
        yield result

    async def _items(self) -> AsyncGenerator[StreamItem | None, None]:
        """Yield the items of the job's stream; None after `IDLE_S` without one, and at the deadline."""
        items = self._followers.follow(self._job.id)
        async with aclosing(StreamReader(items, self._stop)) as reader:
            while True:
                timeout_s = min(IDLE_S, max(0.0, self._deadline_at - time.monotonic()))
                try:
                    item = await reader.next_item(timeout_s=timeout_s)
                except TimeoutError:
                    yield None
                    continue
                if item is None:
                    return
                yield item

    def _on_state(self, item: StreamItem) -> None:
        """Note when the job is claimed. A state after parts of the text means that its worker was lost."""
        if item.data.get("status") == "processing" and self._claimed_at is None:
            self._claimed_at = time.monotonic()
        if self._parts and self._job.stream:
            raise WorkerLost("The worker was lost after it had begun to answer.")
        self._parts.clear()

    def _on_gap(self) -> None:
        """Parts were lost on the way: a text that streams cannot go on; another one is read when it ends."""
        if self._job.stream:
            raise InternalError(_LOST_PART)
        self._has_gap = True
        self._parts.clear()

    async def _require_workers(self) -> None:
        """Raise `WorkerUnavailable` when no worker could claim the queued job at two checks in a row."""
        if self._claimed_at is not None:
            return
        answer = _obstacles.recent(self._ledger, self._job.queue)
        if answer is None:
            answer = await run_in_threadpool(_obstacles.read, self._ledger, self._job.queue)
        if self._was_obstructed and answer.reason is not None:
            raise WorkerUnavailable(answer.reason)
        self._was_obstructed = answer.reason is not None

    def _partial_result(self) -> TextResult:
        """The text up to the deadline. Raises `WorkerUnavailable` or `JobTimeout` when there is none."""
        if self._parts:
            duration_s = time.monotonic() - (self._claimed_at or self._deadline_at - self._deadline_s)
            counted = {"generation_time": round(duration_s, 3), "tokens_generated": self._tokens}
            return TextResult("".join(self._parts), {**counted, "finish_reason": "timeout"})
        if self._claimed_at is None:
            raise WorkerUnavailable(f"No worker took this request within {self._deadline_s:g} seconds.")
        raise JobTimeout(f"No text came within {self._deadline_s:g} seconds.")

    def _rest_of(self, text: str) -> str:
        """The end of the whole text that was not among its parts."""
        yielded = "".join(self._parts)
        if text.startswith(yielded):
            return text[len(yielded) :]
        if self._job.stream and text.strip() != yielded.strip():
            raise InternalError(_LOST_PART)
        return ""


def _result_of(record: Record | None) -> TextResult:
    """The result of an ended job. Raises the error that it failed with, `NotFound` when it was deleted."""
    if record is None or record.outcome is None:
        raise NotFound("The job was deleted while its answer was waited for.")
    outcome = record.outcome
    error = outcome.error
    if error is not None:
        error_class = by_code().get(error.code, InternalError)
        raise error_class(error.message, field=error.field, kind=error.kind)
    text = next((asset.metadata["text"] for asset in outcome.assets if asset.type == "text"), "")
    return TextResult(text, outcome.metadata, outcome.enhanced_prompt)


def _cancel_job(job_id: str) -> None:
    """Cancel a job if it has not ended. An error is logged: the client is gone."""
    try:
        dispatch.cancel(job_id)
    except (Conflict, NotFound):
        return
    except OurvidzError as error:
        _log.warning("cancel_failed", job_id=job_id, code=error.code)


async def _cancel_at_disconnect(request: Request, scope: CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
    scope.cancel()
