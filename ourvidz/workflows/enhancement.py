"""Which words a Wan job is generated from when it asks that a language model enhance its prompt.

Told on two workers: a chat worker finds the words (`enhance`), the Wan worker takes them (`wording`). In
between they wait in the ledger, as a small JSON document.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ourvidz import log
from ourvidz.errors import Cancelled, JobTimeout, PolicyViolation
from ourvidz.jobs.job import ChatJob, Message, VideoJob
from ourvidz.pipelines.base import BatchDecoder
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Run, Services

MODEL = "qwen_base"
CONTINUED = "{system}\n\nPrompt: {prompt}\nEnriched:"
"""What the base model goes on from, to the end of the line: it knows no chat template."""

LATE = "The enhancement of the prompt took too long: it was used as it is."
FAILED = "The enhancement of the prompt failed: it was used as it is."
REFUSED = "The enhanced prompt could not be used: the prompt was used as it is."
EMPTY = "The model had nothing to say to the prompt: it was used as it is."
UNASKED = "The prompt was not enhanced before its job began: it was used as it is."

Hear = Callable[[], None]
"""Called before every token; stops the enhancement by what it raises, `Cancelled` or `FenceLost`."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Wording:
    """The prompt that the pipeline is given, and `told`, what the callback's metadata says about it.

    `enhanced_prompt` is the callback's field of that name; None when nobody asked for an enhancement.
    """

    prompt: str
    enhanced_prompt: str | None = None
    told: dict[str, Any] = field(default_factory=dict)


def wording(job: VideoJob, run: Run) -> Wording:
    """The words that were found for the job, or its own and why none were found."""
    if not job.enhance_prompt:
        return Wording(job.prompt)
    found = run.wording or {"reason": UNASKED}
    if "prompt" not in found:
        return Wording(job.prompt, enhanced_prompt=job.prompt, told=_fallback(found["reason"]))
    told = {
        "enhancement_strategy": "qwen",
        "enhancement_source": MODEL,
        # Documents of version 0.1.0 name the checkpoint as `source`.
        "enhancement_model": found.get("model", found["source"]),
        "enhancement_time": found["seconds"],
        "system_prompt_used": found["system_prompt"],
    }
    return Wording(found["prompt"], enhanced_prompt=found["prompt"], told=told)


def _fallback(reason: str) -> dict[str, Any]:
    return {
        "enhancement_strategy": "fallback",
        "enhancement_reason": reason,
        "enhancement_source": None,
        "system_prompt_used": "none",
    }


def enhance(
    job: VideoJob,
    use: Callable[[], Services],
    *,
    system_prompt: str,
    hear: Hear,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Have the language model enhance a job's prompt; the document that `wording` reads.

    `system_prompt` stands in where the job brings none, `use` opens the services, `limit_s` counts from now.
    Whatever goes wrong is a reason in the document, for the job goes on; only what `hear` raises is raised.
    """
    ends = clock() + limit_s
    try:
        return _found(job, use(), system_prompt, hear, lambda: clock() > ends)
    except (Cancelled, FenceLost):
        raise
    except JobTimeout:
        return {"reason": LATE}
    except PolicyViolation:
        return {"reason": REFUSED}
    except Exception:  # noqa: BLE001  a job is not to fail for want of better words
        _log.exception("enhancement_failed", job_id=job.id)
        return {"reason": FAILED}


def _found(
    job: VideoJob, use: Services, system_prompt: str, hear: Hear, late: Callable[[], bool]
) -> dict[str, Any]:
    """What the model makes of the prompt. `JobTimeout`, or `PolicyViolation` when it may not be used."""
    hear()
    texts = use.models.texts(MODEL)
    decoder, began = texts.new_decoder(), time.monotonic()
    decoder.add(job.id, _asked(job, system_prompt))
    try:
        line = _decoded(decoder, hear, late)
    finally:
        decoder.remove(job.id)
    if not line:
        return {"reason": EMPTY}
    use.gate.judge(job, line)
    if job.flags.get("sfw_mode") and use.moderation is not None:
        use.moderation.judge(line)
    return {
        "prompt": line,
        "source": MODEL,
        "model": texts.info()["name"],
        "system_prompt": "custom" if job.system_prompt else "default",
        "seconds": round(time.monotonic() - began, 3),
    }


def _decoded(decoder: BatchDecoder, hear: Hear, late: Callable[[], bool]) -> str:
    """What the model says up to the end of the first line that is not blank."""
    text = ""
    while True:
        hear()
        if late():
            raise JobTimeout("the enhancement took too long")
        for piece in decoder.step():
            if piece.error is not None:
                raise piece.error
            text = (text + piece.text).lstrip()
            if piece.finish_reason is not None or "\n" in text:
                return text.partition("\n")[0].rstrip()


def _asked(job: VideoJob, system_prompt: str) -> ChatJob:
    """The text to be completed. Line breaks of the prompt are spaces in it: a line's end is the answer's."""
    prompt = " ".join(job.prompt.split())
    text = CONTINUED.format(system=job.system_prompt or system_prompt, prompt=prompt)
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
