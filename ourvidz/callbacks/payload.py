"""Builds the JSON documents that describe a job's result: callback payloads, assets, metadata. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from ourvidz.errors import Cancelled, InternalError
from ourvidz.jobs.outcome import Asset, JobError, Outcome
from ourvidz.ledger.record import OutboxEvent

AssetsAs = Literal["objects", "urls"]

MIB_PER_GIB = 1024

DEFAULTS: dict[str, Any] = {
    "job_type": None,
    "content_type": None,
    "seed": None,
    "num_images": None,
    "batch_size": None,
    "generation_time": None,
    "processing_time": None,
    "queue_time": None,
    "expected_time": None,
    "performance_ratio": None,
    "vram_used": None,
    "vram_total": None,
    "vram_utilization": None,
    "vram_used_gb": None,
    "vram_total_gb": None,
    "frame_num": None,
    "wan_task": None,
    "reference_mode": "none",
    "i2i_mode": None,
    "exact_copy_mode": False,
    "size_capped": False,
    "enhancement_source": None,
    "unrestricted_mode": False,
    "system_prompt_used": "none",
    "nsfw_optimization": False,
    "compel_enabled": False,
    "compel_weights": None,
    "compel_success": False,
    "enhancement_strategy": "none",
    "original_prompt": None,
    "final_prompt_type": None,
    "worker_version": None,
}
"""Every metadata field that every payload has, and its value where nothing is known."""


def build(event: OutboxEvent, *, worker_version: str, assets_as: AssetsAs = "objects") -> dict[str, Any]:
    """The payload of one event. Times are seconds; `vram_*` MiB, `vram_*_gb` GiB."""
    fault = _fault(event)
    outcome = event.outcome
    assets = outcome.assets if outcome and event.kind == "completed" else ()
    metadata = job_metadata(
        event.facts,
        outcome,
        queued_at=event.queued_at,
        claimed_at=event.claimed_at,
        finished_at=event.at if event.terminal else None,
        worker_version=worker_version,
        extra=event.metadata,
    )
    metadata |= _event_metadata(event, fault)
    if assets_as == "urls":
        metadata |= _inline_text(assets)
    return {
        "job_id": event.job_id,
        "worker_id": event.worker_id,
        "status": "failed" if fault else event.kind,
        "sequence": event.sequence,
        "assets": [a.key for a in assets if a.key]
        if assets_as == "urls"
        else [asset_document(a) for a in assets],
        "metadata": metadata,
        "enhancedPrompt": outcome.enhanced_prompt if outcome else None,
        "error_message": fault.message if fault else None,
        "error": fault.told() if fault else None,
    }


def job_metadata(
    facts: Mapping[str, Any],
    outcome: Outcome | None,
    *,
    queued_at: float,
    claimed_at: float | None,
    finished_at: float | None,
    worker_version: str,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of one run: every field of `DEFAULTS`, and what job, outcome and `extra` add.

    `facts` are the job's own values (`Job.facts()`). `queued_at`, `claimed_at` and `finished_at` are Unix
    times in seconds; a time that is None leaves the durations that need it None.
    """
    metadata = DEFAULTS | {"worker_version": worker_version} | dict(facts)
    metadata |= (outcome.metadata if outcome else {}) | dict(extra or {})
    if metadata["batch_size"] is None:
        metadata["batch_size"] = metadata["num_images"]
    generated_s, expected_s = metadata["generation_time"], metadata["expected_time"]
    has_ratio = generated_s is not None and expected_s
    return {
        **metadata,
        "queue_time": _duration_s(queued_at, claimed_at),
        "processing_time": _duration_s(claimed_at, finished_at),
        "performance_ratio": round(generated_s / expected_s, 2) if has_ratio else None,
        **_gibibytes(metadata),
    }


def asset_document(asset: Asset) -> dict[str, Any]:
    """One asset as payloads and job documents list it; URLs are storage keys."""
    return {
        "type": asset.type,
        "url": asset.key,
        "thumbnail_url": asset.thumbnail_key,
        "metadata": dict(asset.metadata),
    }


def encode(payload: dict[str, Any]) -> bytes:
    """The bytes that are signed and sent: compact JSON in UTF-8. `ValueError` for NaN and infinities."""
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _event_metadata(event: OutboxEvent, fault: JobError | None) -> dict[str, Any]:
    """What only an event's payload adds: the number of a repeated attempt, and the error."""
    metadata: dict[str, Any] = {}
    if event.kind == "processing" and (event.attempt >= 2 or event.run >= 2):
        metadata |= {"attempt": event.attempt, "run": event.run}
    if fault:
        metadata |= {"error_type": fault.code, "error_timestamp": _iso(event.at)}
    return metadata


def _duration_s(start: float | None, end: float | None) -> float | None:
    """Seconds between two readings of a clock that may have been set back in between."""
    if start is None or end is None:
        return None
    return round(max(0.0, end - start), 3)


def _gibibytes(known: dict[str, Any]) -> dict[str, float]:
    return {
        f"{name}_gb": round(known[name] / MIB_PER_GIB, 2)
        for name in ("vram_used", "vram_total")
        if known[name] is not None and known[f"{name}_gb"] is None
    }


def _fault(event: OutboxEvent) -> JobError | None:
    if event.kind == "cancelled":
        return event.fault or JobError.of(Cancelled("the job was cancelled"))
    if event.kind == "failed":
        return event.fault or JobError.of(InternalError("the job failed"))
    return None


def _inline_text(assets: tuple[Asset, ...]) -> dict[str, Any]:
    """A text has no URL: a plain list of URLs has no place for it but the job's metadata."""
    texts = [a.metadata["text"] for a in assets if a.type == "text" and "text" in a.metadata]
    return {"text": texts[0]} if texts else {}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
