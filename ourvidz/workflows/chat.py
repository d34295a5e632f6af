"""The story of texts: one job's, and those of the jobs that join it while it grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from ourvidz import __version__, log
from ourvidz.errors import CallerError, Cancelled, JobTimeout, OurvidzError, PolicyViolation
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.pipelines.base import BatchDecoder, TextDelta
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Run, Services

SAY_EVERY_S = 0.05
"""A growing text is told to its followers, and its cancel flag heard, this often: with every token it would
cost more than the token."""
SPEAKING_SHARE = 10
"""And seldom enough that all texts together take one part in so many for it, and again for judging what is
said: for a long conversation that takes long, and its cancel flag is heard in between."""
VARIANTS = {"qwen_instruct": "instruct", "qwen_base": "base"}
"""What callbacks and answers call the models."""

FAILED = "The enhancement failed: the prompt is returned as it is."

Finish = Literal["stop", "length", "timeout"]

_log = log.get(__name__)


class Turn(Protocol):
    """One text job that this worker has the right to run. Neither way to end it raises anything."""

    @property
    def job(self) -> ChatJob:
        """What was asked for."""

    @property
    def run(self) -> Run:
        """The running attempt."""

    def end(self, outcome: Outcome) -> None:
        """The job is done."""

    def fail(self, error: Exception) -> None:
        """The attempt has failed: the job runs again or fails, as the error says; nothing happens when
        somebody else has the job by now."""


class JobSource(Protocol):
    """The jobs that wait and could be decoded together with the first."""

    def joining(self, first: ChatJob, *, present: int) -> Sequence[Turn]:
        """Those that join now, in the order in which they would have started; `present` are decoded already.
        Each has to be ended. When none are, and nobody joins, the batch is over."""


def converse(first: Turn, company: JobSource, use: Services) -> None:
    """Decode a text to its end, together with those that come while it grows.

    Each turn is ended as soon as its own text is; what this raises concerns all that are still open.
    """
    table = _Table(use, first.job)
    table.seat(first)
    while True:
        for turn in company.joining(first.job, present=table.occupied):
            table.seat(turn)
        if not table.occupied:
            return
        table.step()


class _Text:
    """One text as it grows. `judged` characters of it may be shown, `said` have been."""

    def __init__(self, turn: Turn, use: Services, prompt_tokens: int) -> None:
        self.turn = turn
        self.text = ""
        self.tokens = 0
        self.prompt_tokens = prompt_tokens
        self.finish: Finish | None = None
        self.error: OurvidzError | None = None
        self.started = time.monotonic()
        self._use = use
        self._said = 0
        self._judged = 0
        self._next_at = 0.0
        self._judge_at = 0.0
        self._moderated = turn.job.sfw_mode and use.moderation is not None

    def add(self, piece: TextDelta) -> None:
        """Take what a step gave."""
        self.text += piece.text
        self.tokens = piece.tokens_generated
        self.finish = piece.finish_reason
        self.error = piece.error
        if piece.prompt_tokens is not None:
            self.prompt_tokens = piece.prompt_tokens

    @property
    def due(self) -> bool:
        """Whether it is time to speak: at the first word, then now and then, and at the end."""
        first_word = bool(self.text) and not self._judged and not self._moderated
        over = self.finish is not None or self.error is not None
        return over or first_word or time.monotonic() >= self._next_at

    def speak(self, among: int) -> None:
        """Judge what is new and say it, as one of so many texts. `PolicyViolation`, `Cancelled`,
        `JobTimeout`, a lost fence, or why this text cannot go on."""
        if self.error is not None:
            raise self.error
        begun = time.monotonic()
        in_time = not self._moderated and (not self._judged or begun >= self._judge_at)
        if in_time or self.finish is not None:
            self.judge()
        judged = time.monotonic()
        self._judge_at = max(self._judge_at, begun + SPEAKING_SHARE * among * (judged - begun))
        fresh = self.text[self._said : self._judged]
        if self.turn.run.say(fresh, self.tokens, self.turn.job.max_tokens):
            self._said += len(fresh)
        spoken_s = time.monotonic() - judged
        self._next_at = begun + max(SAY_EVERY_S, SPEAKING_SHARE * among * spoken_s)

    def judge(self) -> None:
        """Pass the text so far through the gate, and where its job wants that through moderation."""
        if self._judged == len(self.text):
            return
        self._use.gate.judge(self.turn.job, self.text)
        if self._moderated and self._use.moderation is not None:
            self._use.moderation.judge(self.text)
        self._judged = len(self.text)


class _Table:
    """The texts that are decoded together."""

    def __init__(self, use: Services, first: ChatJob) -> None:
        pipeline = use.models.texts(first.model)
        self._use = use
        self._decoder: BatchDecoder = pipeline.new_decoder()
        self._info = pipeline.info()
        self._variant = VARIANTS[first.model]
        self._texts: dict[str, _Text] = {}

    @property
    def occupied(self) -> int:
        """How many texts are growing."""
        return len(self._texts)

    def seat(self, turn: Turn) -> None:
        """Take one more text in, or end it here."""
        job = turn.job
        try:
            self._use.check(job)
            if job.sfw_mode and self._use.moderation is not None:
                self._use.moderation.judge("\n".join(job.texts()))
            turn.run.step(0, job.max_tokens)
            self._texts[job.id] = _Text(turn, self._use, self._decoder.add(job.id, job))
        except Exception as failure:  # noqa: BLE001  one text's failure must not disturb the others
            self._failed(turn, failure)

    def step(self) -> None:
        """One token more for each, and the end of those that are finished."""
        for piece in self._decoder.step():
            if piece.key in self._texts:
                self._texts[piece.key].add(piece)
        for text in [text for text in self._texts.values() if text.due]:
            if self._over(text):
                del self._texts[text.turn.job.id]
                self._decoder.remove(text.turn.job.id)

    def _over(self, text: _Text) -> bool:
        """Let one text speak. Whether that was its end."""
        try:
            text.speak(self.occupied)
        except JobTimeout:
            self._timed_out(text)
        except Exception as failure:  # noqa: BLE001  one text's failure must not disturb the others
            self._failed(text.turn, failure)
        else:
            if text.finish is None:
                return False
            text.turn.end(self._outcome(text))
        return True

    def _timed_out(self, text: _Text) -> None:
        """Time is up: the text so far is the answer, if it may be shown."""
        try:
            text.judge()
        except OurvidzError as refused:
            self._failed(text.turn, refused)
            return
        # One whose last token came too late is whole all the same.
        text.finish = text.finish or "timeout"
        text.turn.end(self._outcome(text))

    def _failed(self, turn: Turn, failure: Exception) -> None:
        """An enhancement that fails is the original prompt, unless its caller is to hear of the failure."""
        heard = isinstance(failure, (Cancelled, FenceLost, CallerError))
        refused_answer = isinstance(failure, PolicyViolation) and turn.job.id in self._texts
        if turn.job.type != "chat_enhance" or (heard and not refused_answer):
            turn.fail(failure)
            return
        _log.warning("enhancement_failed", job_id=turn.job.id, error=type(failure).__name__)
        turn.end(self._fallback(turn.job, FAILED))

    def _outcome(self, text: _Text) -> Outcome:
        job = text.turn.job
        found = self._found() | {
            "generation_time": round(time.monotonic() - text.started, 3),
            "tokens_generated": text.tokens,
            "prompt_tokens": text.prompt_tokens,
            "finish_reason": text.finish,
        }
        if job.type != "chat_enhance":
            return _written(text.text, found)
        if text.finish == "timeout":
            return self._fallback(
                job, "The enhancement took too long: the prompt is returned as it is.", found
            )
        if not text.text.strip():
            return self._fallback(
                job, "The model had nothing to say: the prompt is returned as it is.", found
            )
        enhanced = {
            "enhancement_strategy": "qwen",
            "enhancement_source": job.model,
            "enhancement_model": self._info["name"],
        }
        return _written(text.text, found | enhanced, enhanced=True)

    def _fallback(self, job: ChatJob, why: str, found: dict[str, Any] | None = None) -> Outcome:
        return unenhanced(job, why, found or self._found())

    def _found(self) -> dict[str, Any]:
        """What the worker found out about any of its texts."""
        return {
            **self._use.models.memory(),
            "model_name": self._info["name"],
            "inference_engine": self._info["inference_engine"],
            "active_model_type": self._variant,
            "worker_version": __version__,
        }


def unenhanced(job: ChatJob, why: str, found: dict[str, Any]) -> Outcome:
    """The prompt of an enhancement as it came, with the reason and what else is known."""
    told = {"enhancement_strategy": "fallback", "enhancement_reason": why, "enhancement_source": None}
    return _written(job.asked, found | told, enhanced=True)


def _written(text: str, metadata: dict[str, Any], *, enhanced: bool = False) -> Outcome:
    """A text needs no storage: it stands in its asset."""
    asset = Asset(type="text", metadata={"text": text, "format": "text", "asset_index": 0})
    return Outcome(
        status="completed",
        assets=(asset,),
        metadata=metadata,
        enhanced_prompt=text if enhanced else None,
    )
