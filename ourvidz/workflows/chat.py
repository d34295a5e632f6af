"""The workflow of text jobs: several are decoded as one batch, and each ends as soon as its text does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ourvidz import log
from ourvidz.errors import CallerError, Cancelled, JobTimeout, OurvidzError, PolicyViolation
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.pipelines.base import BatchDecoder
from ourvidz.workflows.batch_texts import DECODE_TIME_RATIO, BatchItem, BatchText, JobSource, StreamPart
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services, gpu_usage_metadata

FLUSH_INTERVAL_S = 0.05
"""Shortest time between two flushes of all texts, which take one round trip to the ledger: one for every
token would cost more than the token."""
STALL_S = 1.0
"""Work on one text that holds its batch up for longer does not count towards the limits of the others."""
LOCAL_ENGINE = "pure"
"""`inference_engine` of the models of this process; a text server uses its own GPUs."""
MODEL_TYPES = {"qwen_instruct": "instruct", "qwen_base": "base"}
"""The names of the language models in callbacks and answers (`active_model_type`)."""

ENHANCEMENT_FAILED = "The enhancement failed: the prompt is returned as it is."
ENHANCEMENT_TIMED_OUT = "The enhancement took too long: the prompt is returned as it is."
ENHANCEMENT_EMPTY = "The model had nothing to say: the prompt is returned as it is."

_log = log.get(__name__)


def run_text_batch(first: BatchItem, source: JobSource, services: Services) -> None:
    """Decode a text job to its end, together with the jobs from `source` that join while it is decoded.

    Each item is ended as soon as its own text is complete. An exception raised here concerns all items that
    are still open.
    """
    with services.device.hold(first.job.model, first.job, first.run.wait_for_device):
        batch = TextBatch(services, first.job, source)
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

    def __init__(self, services: Services, first: ChatJob, source: JobSource) -> None:
        pipeline = services.models.texts(first.model)
        self._services = services
        self._source = source
        self._next_flush_at = 0.0
        self._decoder: BatchDecoder = pipeline.new_decoder()
        self._info = pipeline.info()
        self._model_type = MODEL_TYPES[first.model]
        self._texts: dict[str, BatchText] = {}

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
                self._texts[job.id] = BatchText(item, self._services, prompt_tokens)
            except Exception as error:  # noqa: BLE001  one text's failure must not disturb the others
                self._fail(item, error)

    def step(self) -> None:
        """Decode one token for every text; flush the texts that are due and end those that are complete."""
        began, texts = time.monotonic(), list(self._texts.values())
        try:
            deltas = self._decoder.step()
        finally:
            self._charge(texts, time.monotonic() - began)
        for delta in deltas:
            if delta.key in self._texts:
                self._texts[delta.key].append(delta)
        self._flush(self._due_texts())

    def _charge(self, texts: Sequence[BatchText], seconds: float) -> None:
        """Divide what a step took of this process's GPU equally."""
        if self._info["inference_engine"] == LOCAL_ENGINE:
            for text in texts:
                text.item.gpu_s += seconds / len(texts)

    def _due_texts(self) -> list[BatchText]:
        """The texts to flush now: all of them after the interval, else those that begin or end."""
        texts = list(self._texts.values())
        if time.monotonic() >= self._next_flush_at:
            self._next_flush_at = time.monotonic() + FLUSH_INTERVAL_S
            return texts
        return [text for text in texts if text.is_due]

    @contextmanager
    def _work_on(self, *job_ids: str) -> Iterator[None]:
        """Work on some texts, while the others of the batch wait."""
        began = time.monotonic()
        yield
        taken_s = time.monotonic() - began
        if taken_s >= STALL_S:
            for other in self._texts.values():
                if other.job.id not in job_ids:
                    other.item.run.exclude(taken_s)

    def _flush(self, texts: Sequence[BatchText]) -> None:
        """Check new text and append it to the jobs' streams; end the jobs whose text is complete."""
        if not texts:
            return
        parts: list[StreamPart] = []
        ended: dict[str, Outcome | None] = {}
        """What each ended job is committed with; None for one that has been ended as failed."""
        for text in texts:
            with self._work_on(text.job.id):
                try:
                    parts.append(text.next_part(self.size))
                except Exception as error:  # noqa: BLE001  one text's failure must not disturb the others
                    ended[text.job.id] = self._outcome_after(text, error)
        for part, result in zip(parts, self._stream(parts), strict=True):
            text = self._texts[part.item.job.id]
            if isinstance(result, Exception):
                ended[text.job.id] = self._outcome_after(text, result)
                continue
            if result:
                text.note_streamed(part)
            if text.finish_reason is not None:
                ended[text.job.id] = self._outcome(text)
        self._end(ended)

    def _stream(self, parts: Sequence[StreamPart]) -> Sequence[bool | Exception]:
        """Append the parts to the jobs' streams, and set when that is due again."""
        if not parts:
            return []
        began = time.monotonic()
        results = self._source.stream_texts(parts)
        pause_s = DECODE_TIME_RATIO * (time.monotonic() - began)
        self._next_flush_at = max(self._next_flush_at, began + pause_s)
        return results

    def _end(self, ended: Mapping[str, Outcome | None]) -> None:
        """Commit outcomes, and remove the texts from the batch."""
        outcomes = [(self._texts[job_id].item, outcome) for job_id, outcome in ended.items() if outcome]
        if outcomes:
            with self._work_on(*ended):
                self._source.end(outcomes)
        for job_id in ended:
            del self._texts[job_id]
            self._decoder.remove(job_id)

    def _outcome_after(self, text: BatchText, error: Exception) -> Outcome | None:
        """The outcome of a job whose text could not be flushed: at its time limit the text so far, if that
        passes the checks. Otherwise ends the job as failed and returns None."""
        if isinstance(error, JobTimeout):
            try:
                text.check()
            except OurvidzError as refused:
                error = refused
            else:
                # A text whose last token arrived after the time limit is complete and keeps its reason.
                text.finish_reason = text.finish_reason or "timeout"
                return self._outcome(text)
        self._fail(text.item, error)
        return None

    def _fail(self, item: BatchItem, error: Exception) -> None:
        """End a failed job. A failed enhancement completes with the original prompt, except for errors that
        the caller must see."""
        visible = isinstance(error, (Cancelled, FenceLost, CallerError))
        refused_answer = isinstance(error, PolicyViolation) and item.job.id in self._texts
        if item.job.type != "chat_enhance" or (visible and not refused_answer):
            item.fail(error)
            return
        _log.warning("enhancement_failed", job_id=item.job.id, error=type(error).__name__)
        item.end(fallback_outcome(item.job, ENHANCEMENT_FAILED, self._metadata(item)))

    def _outcome(self, text: BatchText) -> Outcome:
        """The outcome of a finished text; an enhancement without a usable text has the original prompt."""
        job = text.job
        metadata = self._metadata(text.item) | {
            "generation_time": round(time.monotonic() - text.started_at, 3),
            "tokens_generated": text.tokens,
            "prompt_tokens": text.prompt_tokens,
            "finish_reason": text.finish_reason,
        }
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

    def _metadata(self, item: BatchItem) -> dict[str, Any]:
        """The metadata that all texts of the batch share, and what this one took of the GPU."""
        usage = gpu_usage_metadata({"decode": item.gpu_s}, price=self._services.gpu_price)
        return (
            self._services.metadata()
            | usage
            | {
                "model_name": self._info["name"],
                "inference_engine": self._info["inference_engine"],
                "active_model_type": self._model_type,
            }
        )


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
