"""Records, events and stream items as flat text fields, and back. An absent field is None.

The names of the stored fields are an interface between releases; some differ from the attributes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

from ourvidz.errors import NewerRelease
from ourvidz.jobs.job import Job, dump_job
from ourvidz.jobs.outcome import Outcome
from ourvidz.jobs.sanitize import to_json_safe
from ourvidz.records.record import (
    RECORD_VERSION,
    BrokerEntry,
    EnhancementState,
    OutboxEvent,
    Record,
    Status,
    StreamItem,
    Worker,
    awaits_enhancement,
    is_one_shot,
    record_version,
)

Fields = Mapping[str, str]


def pairs(flat: Iterable[str]) -> dict[str, str]:
    """A flat list of alternating names and values as a mapping."""
    values = iter(flat)
    return dict(zip(values, values, strict=True))


def dump_json(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def dump_outcome(outcome: Outcome) -> str:
    """An outcome as JSON without default values. Equal outcomes give equal text."""
    return outcome.model_dump_json(exclude_defaults=True)


def load_outcome(text: str | None) -> Outcome | None:
    """The outcome that `dump_outcome` wrote; None for an absent one."""
    return Outcome.model_validate_json(text) if text else None


def registration_arguments(
    job: Job, priority: int, suppress_callbacks: bool, entry: BrokerEntry | None, token: str
) -> tuple[object, ...]:
    """The arguments of the script `register` for a job, without its limits; `token` names the call."""
    return (
        job.id,
        job.type,
        job.queue,
        job.user_id,
        priority,
        job.fingerprint(),
        job.callback_url,
        dump_json(job.callback_metadata()),
        dump_job(job),
        token,
        "1" if suppress_callbacks else None,
        "1" if is_one_shot(job) else None,
        "wanted" if awaits_enhancement(job) else None,
        job.request(),
        record_version(job),
        entry.list_name if entry else None,
        entry.message if entry else None,
        getattr(job, "bucket", None),
    )


def counter_increments(
    job_type: str, outcome: Outcome, callback_metadata: Mapping[str, Any]
) -> dict[str, int]:
    """What the end of a run adds to the counters that all jobs share, by counter: the generation time in
    whole milliseconds, the assets of a completed job and their bytes, its reference mode, assets without the
    C2PA manifest that they should have, and what the embedding cache found. Without zeros."""
    cache = outcome.metadata.get("embedding_cache")
    found = cache if isinstance(cache, dict) else {}
    completed, mode = outcome.status == "completed", callback_metadata.get("reference_mode") or "none"
    increments = {
        f"generation_ms.{job_type}.sum": _milliseconds(outcome.metadata.get("generation_time")),
        "assets.unsigned": sum(asset.metadata.get("c2pa") is False for asset in outcome.assets),
        f"assets_generated.{job_type}.count": len(outcome.assets) if completed else 0,
        f"assets_generated.{job_type}.bytes": outcome.stored_bytes if completed else 0,
        f"reference_jobs.{job_type}.{mode}": int(completed and mode != "none"),
        **{f"embedding_cache.{name}": _count(found.get(name)) for name in ("hits", "misses")},
    }
    return {name: amount for name, amount in increments.items() if amount}


def _milliseconds(seconds: object) -> int:
    """Seconds in whole milliseconds; 0 for what is no finite number."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return 0
    return round(seconds * 1000)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def refuse_newer(job_id: str, version: int) -> None:
    """Raise `NewerRelease` for a record that a newer release wrote: misreading it could lose the job."""
    if version > RECORD_VERSION:
        raise newer_record(job_id, version)


def newer_record(job_id: str, version: int | str) -> NewerRelease:
    """The error for a record that a newer release wrote."""
    return NewerRelease(
        f"job {job_id} has a record of version {version} and this release knows {RECORD_VERSION}: upgrade it"
    )


def _time(text: str | None) -> float | None:
    return float(text) if text else None


def load_record(job_id: str, row: Fields) -> Record:
    """A record from its hash. Unknown fields are ignored. `NewerRelease` for a newer version."""
    refuse_newer(job_id, int(row["v"]))
    return Record(
        job_id=job_id,
        type=row["type"],
        queue=row["queue"],
        user_id=row.get("user"),
        status=cast(Status, row["status"]),
        run=int(row["run"]),
        attempt=int(row["attempt"]),
        fence=int(row["fence"]),
        priority=int(row["priority"]),
        order=int(row["order"]),
        created_at=float(row["created_at"]),
        queued_at=float(row["queued_at"]),
        due_at=float(row["due_at"]),
        claimed_at=_time(row.get("claimed_at")),
        finished_at=_time(row.get("finished_at")),
        published_at=_time(row.get("published_at")),
        publishes=int(row["publishes"]),
        progress=float(row["progress"]),
        stage=row.get("stage") or None,
        worker_id=row.get("worker"),
        lease_until=_time(row.get("lease_until")),
        token=row.get("token"),
        cancel_requested="cancel" in row,
        fingerprint=row["fingerprint"],
        request=row.get("request"),
        callback_url=row.get("callback_url"),
        callback_metadata=json.loads(row["facts"]),
        failures={name[2:]: int(times) for name, times in row.items() if name.startswith("f:")},
        outcome=load_outcome(row.get("outcome")),
        suppress_callbacks="quiet" in row,
        one_shot="one_shot" in row,
        streamed="streamed" in row,
        shared="shared" in row,
        alone="alone" in row,
        bucket=row.get("bucket"),
        enhancement=cast(EnhancementState | None, row.get("enhancement")),
        enhancement_result=json.loads(row["wording"]) if "wording" in row else None,
        version=int(row["v"]),
    )


def load_event(event_id: str, row: Fields) -> OutboxEvent:
    """An outbox event from its hash."""
    status = row.get("last_status")
    return OutboxEvent(
        event_id=event_id,
        job_id=row["job"],
        run=int(row["run"]),
        sequence=int(row["seq"]),
        kind=cast(Any, row["kind"]),
        attempt=int(row["attempt"]),
        at=float(row["at"]),
        queued_at=float(row["queued_at"]),
        claimed_at=_time(row.get("claimed_at")),
        worker_id=row.get("worker"),
        callback_url=row.get("callback_url"),
        callback_metadata=json.loads(row["facts"]),
        outcome=load_outcome(row.get("outcome")),
        state=cast(Any, row["state"]),
        due_at=float(row["due_at"]),
        deliveries=int(row["deliveries"]),
        last_status=int(status) if status else None,
        last_error=row.get("last_error"),
        settled_at=_time(row.get("settled_at")),
        leased_until=_time(row.get("lease_until")),
        metadata=json.loads(row.get("metadata", "{}")),
    )


def load_item(item_id: str, row: Fields) -> StreamItem:
    """A stream item from its fields: those that the script set, and the JSON that the worker sent."""
    kind, data = row["k"], json.loads(row.get("d", "{}"))
    if kind == "state":
        data = {"status": row["status"], "run": int(row["run"]), "attempt": int(row["attempt"])}
        data["stage"] = row["stage"] or None
    elif kind == "progress":
        data |= {"progress": float(row["progress"]), "stage": row["stage"] or None}
    elif kind == "done":
        data = {"status": row["status"], "run": int(row["run"])}
        if "error" in row:
            data["error"] = json.loads(row["error"])
    return StreamItem(item_id, cast(Any, kind), data)


def dump_worker(worker: Worker) -> str:
    """A worker as JSON. What its models say of themselves becomes types that JSON has."""
    return dump_json(to_json_safe({each.name: getattr(worker, each.name) for each in fields(worker)}))


def load_worker(text: str, *, seen_at: float, online: bool, draining: bool) -> Worker:
    """A worker from the JSON of its heartbeat and the ledger's own fields. Unknown fields are ignored.
    `ValueError` for a heartbeat without a known one, or with a value of another type."""
    try:
        values = to_json_safe(json.loads(text))
        return Worker(
            id=str(values["id"]),
            family=str(values["family"]),
            queue=str(values["queue"]),
            host=str(values["host"]),
            pid=int(values["pid"]),
            gpu=None if values["gpu"] is None else str(values["gpu"]),
            state=cast(Any, str(values["state"]) if online else "offline"),
            models=tuple(str(name) for name in values["models"]),
            version=str(values["version"]),
            started_at=float(values["started_at"]),
            seen_at=seen_at,
            draining=draining,
            broker_prefix=str(values.get("broker_prefix", "")),
            detail=detail if isinstance(detail := values.get("detail"), dict) else {},
        )
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"a heartbeat cannot be read: {type(error).__name__} {error}") from None
