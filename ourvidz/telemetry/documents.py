"""Builds the documents about one ended job: metrics of its worker, stats of its completion. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ourvidz.jobs.outcome import Outcome
from ourvidz.records.record import Claim

BYTES_PER_MB = 1 << 20


def worker_metrics(claim: Claim, outcome: Outcome, *, at: float) -> dict[str, Any]:
    """What a worker did for a job that ended at `at` (Unix seconds): `generation_time` in seconds,
    `vram_used` in MiB; both are None where they are not known."""
    return {
        "worker_id": claim.record.worker_id,
        "job_type": claim.type,
        "generation_time": outcome.metadata.get("generation_time"),
        "vram_used": outcome.metadata.get("vram_used"),
        "reference_mode": reference_mode(claim.callback_metadata),
        "success": outcome.status == "completed",
        "timestamp": _iso(at),
    }


def completion_stats(claim: Claim, outcome: Outcome, *, at: float) -> dict[str, Any] | None:
    """What a completed job produced: the number of its assets, and the size of their files in units of 2^20
    bytes. None for a job that failed."""
    if outcome.status != "completed":
        return None
    return {
        "job_id": claim.job_id,
        "user_id": claim.user_id,
        "job_type": claim.type,
        "reference_mode": reference_mode(claim.callback_metadata),
        "assets_generated": len(outcome.assets),
        "total_size_mb": round(outcome.stored_bytes / BYTES_PER_MB, 3),
        "completion_timestamp": _iso(at),
    }


def reference_mode(callback_metadata: Mapping[str, Any]) -> str:
    """Which references a job has, as its callbacks say; `none` for texts."""
    return str(callback_metadata.get("reference_mode") or "none")


def _iso(at: float) -> str:
    """The time as ISO 8601 in UTC, with milliseconds and `Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
