"""The cost of a job: its estimated seconds."""

from __future__ import annotations

from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import ChatJob, ImageJob, Job, VideoJob

NATIVE_PIXELS = {"image": 1024 * 1024, "video": 480 * 832}
"""Pixels of the pictures that the catalog's times are for."""
TEXT_TOKENS = 512
"""Tokens of the texts that the catalog's times are for."""


def estimated_s(job: Job) -> float:
    """The upper expected time of the job's type, times what the job asks for beyond the type's defaults:
    steps, frames, pixels, tokens. What a caller says about the expected time does not count."""
    row = CATALOG[job.type]
    seconds = max(1.0, row.expected_s[1])
    if isinstance(job, ChatJob):
        return seconds * max(1.0, job.max_tokens / TEXT_TOKENS)
    if isinstance(job, ImageJob | VideoJob):
        seconds *= max(1.0, job.steps / (row.steps or job.steps))
        seconds *= max(1.0, job.width * job.height / NATIVE_PIXELS[job.kind])
    if isinstance(job, VideoJob):
        seconds *= max(1.0, job.frames / (row.frames or job.frames))
    return seconds
