"""Runs a finished job again beside the original, to see whether it gives the same result."""

from __future__ import annotations

import secrets
from typing import Any

from ourvidz.dispatch.submission import submit
from ourvidz.errors import Conflict, NotFound
from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.records.record import Record
from ourvidz.wiring import control

ID_CHARS = 100
"""How much of the original's id the replay's id begins with: ids have at most 128 characters."""


def replay(job_id: str) -> Record:
    """Submit a completed image or video job again, under a new id, and return the record of the replay.

    It has the seed and the prompt of the original, also where both were made for it, stores its files under
    its own keys, and has no callbacks. Raises `NotFound`, `Conflict` for a job that has no receipt or whose
    document is no longer stored, and what `submit` raises.
    """
    ledger = control.current().ledger
    record, job = ledger.get(job_id), ledger.job(job_id)
    if record is None:
        raise NotFound(f"there is no job {job_id}")
    if not isinstance(receipt_of(record), dict):
        raise Conflict(f"job {job_id} has no receipt: only completed images and videos have one")
    if not isinstance(job, ImageJob | VideoJob):
        raise Conflict(f"what was asked for under {job_id} is no longer kept, so it cannot run again")
    changes: dict[str, Any] = {
        "id": f"{job_id[:ID_CHARS]}.replay-{secrets.token_hex(6)}",
        "callback_url": None,
        "carried": {**job.carried, "replay_of": job_id},
        # A result that is reused would prove nothing.
        "flags": {name: value for name, value in job.flags.items() if name != "reuse"},
    }
    if isinstance(job, VideoJob) and job.enhance_prompt:
        # The enhancement is sampled: the replay takes its result.
        enhanced = record.outcome.enhanced_prompt if record.outcome else None
        changes |= {"prompt": enhanced or job.prompt, "enhance_prompt": False}
    return submit(job.model_copy(update=changes), suppress_callbacks=True).record


def receipt_of(record: Record) -> dict[str, Any] | None:
    """The receipt of a completed job; None for any other, and for one of a release without receipts."""
    return record.outcome.metadata.get("receipt") if record.outcome else None
