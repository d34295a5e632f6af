"""The workflow of text jobs: several are decoded as one batch, and each ends as soon as its text does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from ourvidz import log
from ourvidz.errors import CallerError, Cancelled, JobTimeout, OurvidzError, PolicyViolation
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.pipelines.base import BatchDecoder, TextDelta
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Run, Services, gpu_usage_metadata

FLUSH_INTERVAL_S = 0.05
"""Shortest time between two flushes of one text: a round trip to the ledger for every token would cost more
than the token."""
DECODE_TIME_RATIO = 10
"""All flushes of a batch together take at most one part in so many of the time, and so do all checks: the
next one of a text comes this many times its duration later, times the number of texts."""
STALL_S = 1.0
"""Work on one text that holds its batch up for longer does not count towards the limits of the others."""
LOCAL_ENGINE = "pure"
"""`inference_engine` of the models of this process; a text server uses its own GPUs."""
MODEL_TYPES = {"qwen_instruct": "instruct", "qwen_base": "base"}
"""The names of the language models in callbacks and answers (`active_model_type`)."""

ENHANCEMENT_FAILED = "The enhancement failed: the prompt is returned as it is."
ENHANCEMENT_TIMED_OUT = "The enhancement took too long: the prompt is returned as it is."
ENHANCEMENT_EMPTY = "The model had nothing to say: the prompt is returned as it is."

FinishReason = Literal["stop", "length", "timeout"]

_log = log.get(__name__)


class BatchItem(Protocol):
    """One claimed text job. `end` and `fail` raise nothing, and one of them is called once."""

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


class JobSource(Protocol):
    """The queued jobs that may be decoded together with the first one of a batch."""

    def next_items(self, first: ChatJob, *, batch_size: int) -> Sequence[BatchItem]:
        """Return the jobs that join a batch of `batch_size` texts now, in queue order. Each must be ended."""


def run_text_batch(first: BatchItem, source: JobSource, services: Services) -> None:
    """Decode a text job to its end, together with the jobs from `source` that join while it is decoded.

    Each item is ended as soon as its own text is complete. An exception raised here concerns all items that
    are still open.
    """
    with services.device.hold(first.job.model, first.job, first.run.wait_for_device):
        batch = TextBatch(services, first.job)
        batch.add(first)
        while True:
            # While others wait for the device, nobody joins: the batch would never end.
            if not services.device.must_yield():
                for item in source.next_items(first.job, batch_size=batch.size):
                    batch.add(item)
            if not batch.size:
                return
            batch.step()


class TextBatch:
    """The texts that are decoded together, all on the model of the first job."""

    def __init__(self, services: Services, first: ChatJob) -> None:
        pipeline = services.models.texts(first.model)
        self._services = services
        self._decoder: BatchDecoder = pipeline.new_decoder()
        self._info = pipeline.info()
        self._model_type = MODEL_TYPES[first.model]
        self._texts: dict[str, _Text] = {}

    @property
    def size(self) -> int:
        """How many texts are being decoded."""
        return len(self._texts)

    def add(self, item: BatchItem) -> None:
        """Add a job to the batch. A job that is refused or cannot start is ended here."""
        job, moderation = item.job, self._services.moderation
        with self._work_on(job.id):
            try:
                self._services.check(job)
                if job.sfw_mode and moderation is not None:
                    moderation.check("\n".join(job.texts()))
                item.run.step(0, job.max_tokens)
                with self._services.checked(job):
                    prompt_tokens = self._decoder.add(job.id, job)
                self._texts[job.id] = _Text(item, self._services, prompt_tokens)
            except Exception as error:  # noqa: BLE001  one text's failure must not disturb the others
                self._fail(item, error)

    def step(self) -> None:
        """Decode one token for every text; flush the texts that are due and end those that are complete."""
        began, texts = time.monotonic(), list(self._texts.values())
        deltas = self._decoder.step()
        share_s = (time.monotonic() - began) / max(1, len(texts))
        for text in texts:
            text.gpu_s += share_s
        for delta in deltas:
            if delta.key in self._texts:
                self._texts[delta.key].append(delta)
        for text in [text for text in self._texts.values() if text.is_due]:
            with self._work_on(text.job.id):
                ended = self._flush(text)
            if ended:
                del self._texts[text.job.id]
                self._decoder.remove(text.job.id)

    @contextmanager
    def _work_on(self, job_id: str) -> Iterator[None]:
        """Work on one text, while the others of the batch wait."""
        began = time.monotonic()
        yield
        taken_s = time.monotonic() - began
        if taken_s >= STALL_S:
            for other in self._texts.values():
                if other.job.id != job_id:
                    other.item.run.exclude(taken_s)

    def _flush(self, text: _Text) -> bool:
        """Flush one text. Returns whether its job has ended with that."""
        try:
            text.flush(self.size)
        except JobTimeout:
            self._end_timed_out(text)
        except Exception as error:  # noqa: BLE001  one text's failure must not disturb the others
            self._fail(text.item, error)
        else:
            if text.finish_reason is None:
                return False
            text.item.end(self._outcome(text))
        return True

    def _end_timed_out(self, text: _Text) -> None:
        """End a job at its time limit with the text so far, if that passes the checks."""
        try:
            text.check()
        except OurvidzError as refused:
            self._fail(text.item, refused)
            return
        # A text whose last token arrived after the time limit is complete and keeps its finish reason.
        text.finish_reason = text.finish_reason or "timeout"
        text.item.end(self._outcome(text))

    def _fail(self, item: BatchItem, error: Exception) -> None:
        """End a failed job. A failed enhancement completes with the original prompt, except for errors that
        the caller must see."""
        visible = isinstance(error, (Cancelled, FenceLost, CallerError))
        refused_answer = isinstance(error, PolicyViolation) and item.job.id in self._texts
        if item.job.type != "chat_enhance" or (visible and not refused_answer):
            item.fail(error)
            return
        _log.warning("enhancement_failed", job_id=item.job.id, error=type(error).__name__)
        item.end(fallback_outcome(item.job, ENHANCEMENT_FAILED, self._metadata()))

    def _outcome(self, text: _Text) -> Outcome:
        """The outcome of a finished text; an enhancement without a usable text has the original prompt."""
        job = text.job
        metadata = self._metadata() | {
            "generation_time": round(time.monotonic() - text.started_at, 3),
            "tokens_generated": text.tokens,
            "prompt_tokens": text.prompt_tokens,
            "finish_reason": text.finish_reason,
        }
        if self._info["inference_engine"] == LOCAL_ENGINE:
            metadata |= gpu_usage_metadata({"decode": text.gpu_s}, price=self._services.gpu_price)
        if job.type != "chat_enhance":
            return _text_outcome(text.text, metadata)
        if text.finish_reason == "timeout":
            return fallback_outcome(job, ENHANCEMENT_TIMED_OUT, metadata)
        if not text.text.strip():
            return fallback_outcome(job, ENHANCEMENT_EMPTY, metadata)
        enhancement = {
            "enhancement_strategy": "qwen",
            "enhancement_source": job.model,
            "enhancement_model": self._info["name"],
        }
        return _text_outcome(text.text, metadata | enhancement, enhanced=True)

    def _metadata(self) -> dict[str, Any]:
        """The metadata that all texts of the batch share."""
        return self._services.metadata() | {
            "model_name": self._info["name"],
            "inference_engine": self._info["inference_engine"],
            "active_model_type": self._model_type,
        }


class _Text:
    """The state of one text in a batch.

    The first `_checked` characters have passed the gate, the first `_flushed` are in the job's stream.
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
        self.gpu_s = 0.0
        self._services = services
        self._flushed = 0
        self._checked = 0
        self._next_flush_at = 0.0
        self._next_check_at = 0.0
        self._moderated = item.job.sfw_mode and services.moderation is not None

    @property
    def is_due(self) -> bool:
        """Whether to flush now: for the first characters, after the interval, and at the end."""
        first = bool(self.text) and not self._checked and not self._moderated
        complete = self.finish_reason is not None or self.error is not None
        return complete or first or time.monotonic() >= self._next_flush_at

    def append(self, delta: TextDelta) -> None:
        """Append what one decoding step added."""
        self.text += delta.text
        self.tokens = delta.tokens_generated
        self.finish_reason = delta.finish_reason
        self.error = delta.error
        if delta.prompt_tokens is not None:
            self.prompt_tokens = delta.prompt_tokens

    def flush(self, batch_size: int) -> None:
        """Check new text and append it to the job's stream.

        A moderated text is not streamed: it is checked once, when it is complete. Raises `PolicyViolation`,
        `Cancelled`, `JobTimeout`, `FenceLost`, or the error with which the decoder ended this text.
        """
        if self.error is not None:
            raise self.error
        began = time.monotonic()
        check_due = not self._moderated and (not self._checked or began >= self._next_check_at)
        if check_due or self.finish_reason is not None:
            self.check()
        checked = time.monotonic()
        pause_s = DECODE_TIME_RATIO * batch_size * (checked - began)
        self._next_check_at = max(self._next_check_at, began + pause_s)
        new_text = self.text[self._flushed : self._checked]
        if self.item.run.stream_text(new_text, self.tokens, self.job.max_tokens):
            self._flushed += len(new_text)
        pause_s = DECODE_TIME_RATIO * batch_size * (time.monotonic() - checked)
        self._next_flush_at = began + max(FLUSH_INTERVAL_S, pause_s)

    def check(self) -> None:
        """Check the text so far with the safety gate, and with moderation if the job requests it."""
        if self._checked == len(self.text):
            return
        self._services.gate.check_job(self.job, self.text)
        if self._moderated and self._services.moderation is not None:
            self._services.moderation.check(self.text)
        self._checked = len(self.text)


def fallback_outcome(job: ChatJob, reason: str, metadata: dict[str, Any]) -> Outcome:
    """The outcome of an enhancement that returns the original prompt; `reason` is a sentence for the
    caller."""
    fallback = {"enhancement_strategy": "fallback", "enhancement_reason": reason, "enhancement_source": None}
    return _text_outcome(job.last_user_message, metadata | fallback, enhanced=True)


def _text_outcome(text: str, metadata: dict[str, Any], *, enhanced: bool = False) -> Outcome:
    """A completed outcome whose one asset carries the text inline; nothing is stored."""
    asset = Asset(type="text", metadata={"text": text, "format": "text", "asset_index": 0})
    return Outcome(
        status="completed",
        assets=(asset,),
        metadata=metadata,
        enhanced_prompt=text if enhanced else None,
    )
