"""Builds the JSON documents of callbacks: payloads, assets, metadata. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from ourvidz.callbacks import registration
from ourvidz.errors import Cancelled, InternalError
from ourvidz.jobs.outcome import Asset, JobError, Outcome
from ourvidz.records.record import OutboxEvent

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
"""The metadata fields of every payload, each with its value where the job and its outcome set none."""


def build(event: OutboxEvent, *, worker_version: str, assets_as: AssetsAs = "objects") -> dict[str, Any]:
    """Build the callback payload of one outbox event.

    `assets_as="urls"` lists the assets as plain URL strings. Durations are seconds, `vram_*` MiB, `vram_*_gb`
    GiB. Raises `TypeError` or `ValueError` if stored metadata has a value of the wrong type.
    """
    if event.is_registration:
        return registration.build(event)
    error = _error(event)
    outcome = event.outcome
    assets = outcome.assets if outcome and event.kind == "completed" else ()
    metadata = job_metadata(
        event.callback_metadata,
        outcome,
        queued_at=event.queued_at,
        claimed_at=event.claimed_at,
        finished_at=event.at if event.terminal else None,
        worker_version=worker_version,
        extra=event.metadata,
    )
    metadata |= _event_metadata(event, error)
    if assets_as == "urls":
        metadata |= _inline_text(assets)
    return {
        "job_id": event.job_id,
        "worker_id": event.worker_id,
        "status": "failed" if error else event.kind,
        "sequence": event.sequence,
        "assets": [a.key for a in assets if a.key]
        if assets_as == "urls"
        else [asset_document(a) for a in assets],
        "metadata": metadata,
        "enhancedPrompt": outcome.enhanced_prompt if outcome else None,
        "error_message": error.message if error else None,
        "error": error.to_public() if error else None,
    }


def job_metadata(
    callback_metadata: Mapping[str, Any],
    outcome: Outcome | None,
    *,
    queued_at: float,
    claimed_at: float | None,
    finished_at: float | None,
    worker_version: str,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of one run: every field of `DEFAULTS`, and what job, outcome and `extra` add.

    `callback_metadata` is the job's own (`Job.callback_metadata()`). `queued_at`, `claimed_at` and
    `finished_at` are Unix times in seconds; a time that is None leaves the durations that need it None.
    """
    metadata = DEFAULTS | {"worker_version": worker_version} | dict(callback_metadata)
    metadata |= (outcome.metadata if outcome else {}) | dict(extra or {})
    if metadata["batch_size"] is None:
        metadata["batch_size"] = metadata["num_images"]
    return {
        **metadata,
        "queue_time": _duration_s(queued_at, claimed_at),
        "processing_time": _duration_s(claimed_at, finished_at),
        "performance_ratio": _ratio(metadata["generation_time"], metadata["expected_time"]),
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
    """Encode a payload as compact UTF-8 JSON: the bytes that are signed and sent. Raises `ValueError` for NaN
    and infinities, `TypeError` for values that JSON has no form for."""
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _event_metadata(event: OutboxEvent, error: JobError | None) -> dict[str, Any]:
    """The metadata that depends on the event: attempt and run of a repeated start, type and time of an
    error."""
    metadata: dict[str, Any] = {}
    if event.kind == "processing" and (event.attempt >= 2 or event.run >= 2):
        metadata |= {"attempt": event.attempt, "run": event.run}
    if error:
        metadata |= {"error_type": error.code, "error_timestamp": _iso(event.at)}
    return metadata


def _duration_s(start: float | None, end: float | None) -> float | None:
    """Seconds between two readings of a clock that may have been set back in between."""
    if start is None or end is None:
        return None
    return round(max(0.0, end - start), 3)


def _ratio(generated_s: float | None, expected_s: float | None) -> float | None:
    """Generation time by expected time; None where one is not known, or callers expect next to nothing."""
    if generated_s is None or not expected_s:
        return None
    ratio = round(generated_s / expected_s, 2)
    return ratio if math.isfinite(ratio) else None


def _gibibytes(metadata: dict[str, Any]) -> dict[str, float]:
    """The VRAM fields in GiB, which older receivers read, derived from those in MiB."""
    return {
        f"{name}_gb": round(metadata[name] / MIB_PER_GIB, 2)
        for name in ("vram_used", "vram_total")
        if metadata[name] is not None and metadata[f"{name}_gb"] is None
    }


def _error(event: OutboxEvent) -> JobError | None:
    """The error of a failed or cancelled run; records of old versions may lack it."""
    if event.kind == "cancelled":
        return event.error or JobError.of(Cancelled("the job was cancelled"))
    if event.kind == "failed":
        return event.error or JobError.of(InternalError("the job failed"))
    return None


def _inline_text(assets: tuple[Asset, ...]) -> dict[str, Any]:
    """The text of a text job, for the job's metadata: a plain list of URLs has no place for it."""
    texts = [a.metadata["text"] for a in assets if a.type == "text" and "text" in a.metadata]
    return {"text": texts[0]} if texts else {}


def _iso(at: float) -> str:
    """The time as ISO 8601 in UTC, with milliseconds and `Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
