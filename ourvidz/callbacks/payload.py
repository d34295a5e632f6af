"""What the caller is told: one outbox row in, one JSON document out. Nothing else is asked."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from ourvidz.errors import Cancelled, InternalError
from ourvidz.jobs.outcome import Asset, JobError
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
    made = outcome.assets if outcome and event.kind == "completed" else ()
    metadata = _metadata(event, fault, worker_version)
    if assets_as == "urls":
        metadata |= _inline_text(made)
    return {
        "job_id": event.job_id,
        "worker_id": event.worker_id,
        "status": "failed" if fault else event.kind,
        "sequence": event.sequence,
        "assets": [a.key for a in made if a.key] if assets_as == "urls" else [_asset(a) for a in made],
        "metadata": metadata,
        "enhancedPrompt": outcome.enhanced_prompt if outcome else None,
        "error_message": fault.message if fault else None,
        "error": fault.told() if fault else None,
    }


def encode(payload: dict[str, Any]) -> bytes:
    """The bytes that are signed and sent: compact JSON in UTF-8. `ValueError` for NaN and infinities."""
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _metadata(event: OutboxEvent, fault: JobError | None, worker_version: str) -> dict[str, Any]:
    found = event.outcome.metadata if event.outcome else {}
    known = DEFAULTS | {"worker_version": worker_version} | event.facts | found | event.metadata
    if known["batch_size"] is None:
        known["batch_size"] = known["num_images"]
    known |= _times(event, known) | _gibibytes(known)
    if event.kind == "processing" and (event.attempt >= 2 or event.run >= 2):
        known |= {"attempt": event.attempt, "run": event.run}
    if fault:
        known |= {"error_type": fault.code, "error_timestamp": _iso(event.at)}
    return known


def _times(event: OutboxEvent, known: dict[str, Any]) -> dict[str, float | None]:
    claimed_at = event.claimed_at
    generated_s, expected_s = known["generation_time"], known["expected_time"]
    return {
        "queue_time": None if claimed_at is None else _span(event.queued_at, claimed_at),
        "processing_time": None if claimed_at is None or not event.terminal else _span(claimed_at, event.at),
        "performance_ratio": round(generated_s / expected_s, 2)
        if generated_s is not None and expected_s
        else None,
    }


def _span(start: float, end: float) -> float:
    """Seconds between two times of a clock that may have been set back in between."""
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


def _asset(asset: Asset) -> dict[str, Any]:
    return {
        "type": asset.type,
        "url": asset.key,
        "thumbnail_url": asset.thumbnail_key,
        "metadata": dict(asset.metadata),
    }


def _inline_text(assets: tuple[Asset, ...]) -> dict[str, Any]:
    """A text has no URL: a plain list of URLs has no place for it but the job's metadata."""
    texts = [a.metadata["text"] for a in assets if a.type == "text" and "text" in a.metadata]
    return {"text": texts[0]} if texts else {}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
