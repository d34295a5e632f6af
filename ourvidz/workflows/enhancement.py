"""Which words a Wan job is generated from when it asks that a language model enhance its prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ourvidz.jobs.job import VideoJob

NOBODY = "There is no chat worker to enhance the prompt: it was used as it is."


@dataclass(frozen=True, slots=True)
class Wording:
    """The prompt that the pipeline is given, and `told`, what the callback's metadata says about it.

    `enhanced_prompt` is the callback's field of that name; None when nobody asked for an enhancement.
    """

    prompt: str
    enhanced_prompt: str | None = None
    told: dict[str, Any] = field(default_factory=dict)


def wording(job: VideoJob) -> Wording:
    """The prompt as it was sent. A job that wanted it enhanced is told why it was not, and goes on."""
    if not job.enhance_prompt:
        return Wording(job.prompt)
    told = {
        "enhancement_strategy": "fallback",
        "enhancement_reason": NOBODY,
        "enhancement_source": None,
        "system_prompt_used": "none",
    }
    return Wording(job.prompt, enhanced_prompt=job.prompt, told=told)
