"""The texts of a batch: what a batch sees of their jobs, and what is checked and streamed of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ourvidz.errors import OurvidzError
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.pipelines.base import TextDelta
from ourvidz.workflows.services import Run, Services

DECODE_TIME_RATIO = 10
"""Flushes of a batch take at most one part in so many of the time, and so do all checks: the next flush comes
this many times its duration later, the next check of a text also times the number of texts."""

FinishReason = Literal["stop", "length", "timeout"]


class BatchItem(Protocol):
    """One claimed text job. `end` and `fail` raise nothing, and one of them is called once."""

    gpu_s: float
    """The GPU-seconds that its text has taken. They count for the user also where no outcome reports them."""

    @property
    def job(self) -> ChatJob:
        """The job."""

    @property
    def run(self) -> Run:
        """The running attempt."""

    def end(self, outcome: Outcome) -> None:
        """Commit the outcome of the job."""

    def fail(self, error: Exception) -> None:
        """End the attempt: the job is retried or fails, as the error class says. Has no effect if
        another worker has claimed the job."""


@dataclass(frozen=True, slots=True)
class StreamPart:
    """New text of an item, which may be empty, and the number of tokens so far and at most."""

    item: BatchItem
    text: str
    tokens: int
    max_tokens: int


class JobSource(Protocol):
    """The queued jobs that may be decoded together with the first one of a batch, and what is written of
    several at once: a round trip to the ledger takes as long as decoding a token."""

    def next_items(self, first: ChatJob, *, batch_size: int) -> Sequence[BatchItem]:
        """Return the jobs that join a batch of `batch_size` texts now, in queue order. Each must be ended."""

    def stream_texts(self, parts: Sequence[StreamPart]) -> Sequence[bool | Exception]:
        """Append new text to the jobs' streams, and report their progress. Returns for each whether it was
        appended, False when it must be sent again; or in its place the exception that ends the attempt:
        `Cancelled`, `JobTimeout`, or another one for a lost fence."""

    def end(self, outcomes: Sequence[tuple[BatchItem, Outcome]]) -> None:
        """`BatchItem.end` for several items at once."""


class BatchText:
    """The state of one text in a batch.

    The first `_checked` characters have passed the gate, the first `_streamed` are in the job's stream.
    """

    def __init__(self, item: BatchItem, services: Services, prompt_tokens: int) -> None:
        self.item = item
        self.job = item.job
        self.text = ""
        self.tokens = 0
        self.prompt_tokens = prompt_tokens
        self.finish_reason: FinishReason | None = None
        self.error: OurvidzError | None = None
        self.started_at = time.monotonic()
        self._services = services
        self._streamed = 0
        self._checked = 0
        self._next_check_at = 0.0
        self._moderated = item.job.sfw_mode and services.moderation is not None

    @property
    def is_due(self) -> bool:
        """Whether to flush before the batch's interval is over: for the first characters, and at the end."""
        first = bool(self.text) and not self._checked and not self._moderated
        return first or self.finish_reason is not None or self.error is not None

    def append(self, delta: TextDelta) -> None:
        """Append what one decoding step added."""
        self.text += delta.text
        self.tokens = delta.tokens_generated
        self.finish_reason = delta.finish_reason
        self.error = delta.error
        if delta.prompt_tokens is not None:
            self.prompt_tokens = delta.prompt_tokens

    def next_part(self, batch_size: int) -> StreamPart:
        """Check new text, and return what can be streamed of it.

        A moderated text is not streamed: it is checked once, when it is complete. Raises `PolicyViolation`,
        or the error with which the decoder ended this text.
        """
        if self.error is not None:
            raise self.error
        began = time.monotonic()
        check_due = not self._moderated and (not self._checked or began >= self._next_check_at)
        if check_due or self.finish_reason is not None:
            self.check()
        pause_s = DECODE_TIME_RATIO * batch_size * (time.monotonic() - began)
        self._next_check_at = max(self._next_check_at, began + pause_s)
        new_text = self.text[self._streamed : self._checked]
        return StreamPart(self.item, new_text, self.tokens, self.job.max_tokens)

    def note_streamed(self, part: StreamPart) -> None:
        """Note that a part is in the job's stream."""
        self._streamed += len(part.text)

    def check(self) -> None:
        """Check the text so far with the safety gate, and with moderation if the job requests it."""
        if self._checked == len(self.text):
            return
        self._services.gate.check_job(self.job, self.text)
        if self._moderated and self._services.moderation is not None:
            self._services.moderation.check(self.text)
        self._checked = len(self.text)
