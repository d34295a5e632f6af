"""Which finished job may answer another one: the same request with the same seed, of the same user."""

from __future__ import annotations

import hashlib
import json

from ourvidz.jobs.job import ImageJob, Job, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.jobs.versions import later_fields

WITHOUT_EFFECT = {
    *("id", "version", "expected_time", "callback_url", "bucket"),
    *("carried", "flags", "extras", "seed_drawn"),
}
"""Fields of a job that do not change its result."""
DIGEST_CHARS = 32


def wants_reuse(job: Job) -> bool:
    """Whether the caller accepts the result of an earlier job."""
    return isinstance(job, ImageJob | VideoJob) and bool(job.flags.get("reuse"))


def result_key(job: Job) -> str | None:
    """A digest of everything in a job that its result depends on, the seed included, and its user; None for
    jobs that store no files. Equal in all releases as long as no caller uses a later field."""
    if not isinstance(job, ImageJob | VideoJob):
        return None
    document = job.model_dump(mode="json", exclude=WITHOUT_EFFECT | later_fields(job)[1])
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:DIGEST_CHARS]


def is_reusable(outcome: Outcome | None) -> bool:
    """Whether an outcome is what its job asked for: completed, with its references and its enhancement."""
    if outcome is None or outcome.status != "completed" or not outcome.assets:
        return False
    metadata = outcome.metadata
    return not metadata.get("reference_fallback") and metadata.get("enhancement_strategy") != "fallback"
