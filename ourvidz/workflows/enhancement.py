"""The workflow of prompt enhancement: a language model rewrites the prompt of a Wan job before generation.

It runs on two workers. A chat worker enhances the prompt (`enhance`) under a lease (`EnhancementLease`), the
Wan worker reads the result (`resolve_prompt`). In between the result is kept in the ledger, as a small JSON
document with either `prompt`, `source`, `model`, `system_prompt` and `seconds`, or `reason`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ourvidz import log
from ourvidz.errors import Cancelled, JobTimeout, PolicyViolation, WorkerUnavailable
from ourvidz.jobs.job import ChatJob, Message, VideoJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import BatchDecoder
from ourvidz.prompts.conversations import completion_text
from ourvidz.records.record import Enhancement, Verdict
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Run, Services

MODEL = "qwen_base"
TIMED_OUT = "The enhancement of the prompt took too long: it was used as it is."
FAILED = "The enhancement of the prompt failed: it was used as it is."
REFUSED = "The enhanced prompt could not be used: the prompt was used as it is."
EMPTY = "The model had nothing to say to the prompt: it was used as it is."
NOT_STARTED = "The prompt was not enhanced before its job began: it was used as it is."

RENEWAL_INTERVAL_S = 0.25
"""Shortest time between two renewals of the lease; a token takes a fraction of it."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class ResolvedPrompt:
    """The prompt that a Wan job is generated from, and the callback metadata about its enhancement.

    `enhanced_prompt` is the callback's field of that name; None for a job without enhancement.
    """

    prompt: str
    enhanced_prompt: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def resolve_prompt(job: VideoJob, run: Run) -> ResolvedPrompt:
    """Return the enhanced prompt of a job, or its original one and why it was not enhanced."""
    if not job.enhance_prompt:
        return ResolvedPrompt(job.prompt)
    result = run.enhancement_result or {"reason": NOT_STARTED}
    if "prompt" not in result:
        metadata = {
            "enhancement_strategy": "fallback",
            "enhancement_reason": result["reason"],
            "enhancement_source": None,
            "system_prompt_used": "none",
        }
        return ResolvedPrompt(job.prompt, enhanced_prompt=job.prompt, metadata=metadata)
    metadata = {
        "enhancement_strategy": "qwen",
        "enhancement_source": MODEL,
        # A document without `model` is of an older release, whose `source` is the checkpoint.
        "enhancement_model": result.get("model", result["source"]),
        "enhancement_time": result["seconds"],
        "system_prompt_used": result["system_prompt"],
    }
    return ResolvedPrompt(result["prompt"], enhanced_prompt=result["prompt"], metadata=metadata)


def enhance(
    job: VideoJob,
    open_services: Callable[[], Services],
    *,
    system_prompt: str,
    check_lease: Callable[[], None],
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Enhance a job's prompt; return the document for the ledger.

    `system_prompt` is used where the job has none, `limit_s` counts from now. `check_lease` is called before
    every token and stops the enhancement by raising `Cancelled` or `FenceLost`, which are raised here. Every
    other failure becomes a `reason` in the document, because the job goes on without enhancement.
    """
    deadline = clock() + limit_s
    try:
        return _enhance(job, open_services(), system_prompt, check_lease, lambda: clock() > deadline)
    except (Cancelled, FenceLost):
        raise
    except JobTimeout:
        return {"reason": TIMED_OUT}
    except PolicyViolation:
        return {"reason": REFUSED}
    except Exception:  # noqa: BLE001  a job must not fail because its prompt could not be enhanced
        _log.exception("enhancement_failed", job_id=job.id)
        return {"reason": FAILED}


def _enhance(
    job: VideoJob,
    services: Services,
    system_prompt: str,
    check_lease: Callable[[], None],
    is_late: Callable[[], bool],
) -> dict[str, Any]:
    """Decode and check the enhanced prompt. Raises `JobTimeout`, or `PolicyViolation` for a refused text."""
    check_lease()
    completion = _completion_job(job, system_prompt)
    with services.device.hold(MODEL, completion, check_lease):
        pipeline = services.models.texts(MODEL)
        decoder, began = pipeline.new_decoder(), time.monotonic()
        with services.checked(job):
            decoder.add(job.id, completion)
        try:
            line = _first_line(decoder, check_lease, is_late)
        finally:
            decoder.remove(job.id)
    if not line:
        return {"reason": EMPTY}
    services.gate.check_job(job, line)
    if job.flags.get("sfw_mode") and services.moderation is not None:
        services.moderation.check(line)
    return {
        "prompt": line,
        "source": MODEL,
        "model": pipeline.info()["name"],
        "system_prompt": "custom" if job.system_prompt else "default",
        "seconds": round(time.monotonic() - began, 3),
    }


def _first_line(decoder: BatchDecoder, check_lease: Callable[[], None], is_late: Callable[[], bool]) -> str:
    """Decode up to the end of the first line that is not blank; return it without surrounding spaces."""
    text = ""
    while True:
        check_lease()
        if is_late():
            raise JobTimeout("the enhancement took too long")
        for delta in decoder.step():
            if delta.error is not None:
                raise delta.error
            text = (text + delta.text).lstrip()
            if delta.finish_reason is not None or "\n" in text:
                return text.partition("\n")[0].rstrip()


def _completion_job(job: VideoJob, system_prompt: str) -> ChatJob:
    """The text job that is decoded."""
    text = completion_text(job.prompt, job.system_prompt or system_prompt)
    return ChatJob(
        id=job.id,
        type="chat_enhance",
        user_id=job.user_id,
        expected_time=job.expected_time,
        messages=(Message(role="user", content=text),),
        model=MODEL,
        max_tokens=job.enhance_tokens,
        temperature=job.enhance_temperature,
        seed=job.seed,
    )


class EnhancementLease:
    """The lease on one enhancement, renewed between tokens.

    A lease that has expired, for example while a model was loaded, is renewed unless another worker has taken
    over the enhancement.
    """

    def __init__(
        self,
        enhancement: Enhancement,
        ledger: Ledger,
        *,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enhancement = enhancement
        self._ledger = ledger
        self._lease_s = lease_s
        self._clock = clock
        self._next_renewal_at = clock()

    def check(self) -> None:
        """Renew the lease if it is due. An unreachable ledger is ignored.

        Raises `Cancelled`, or `FenceLost` if another worker has taken over or the enhancement has ended.
        """
        now = self._clock()
        if now < self._next_renewal_at:
            return
        self._next_renewal_at = now + min(RENEWAL_INTERVAL_S, self._lease_s / 3)
        try:
            verdict = self._ledger.renew_enhancement(self._enhancement, lease_s=self._lease_s)
        except WorkerUnavailable:
            _log.warning("ledger_away", job_id=self._enhancement.job_id)
            return
        if verdict is Verdict.LOST:
            raise FenceLost(self._enhancement.job_id)
        if verdict is Verdict.CANCEL:
            raise Cancelled("the job was cancelled")
