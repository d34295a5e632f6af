"""From the ledger's records to the documents of the job routes."""

from __future__ import annotations

from datetime import UTC, datetime

from ourvidz import __version__
from ourvidz.callbacks import payload
from ourvidz.ledger.record import Record
from ourvidz.ledger.store import Ledger
from ourvidz.storage.store import Store
from ourvidz.web.documents import Accepted, FaultDocument, JobListed, JobState, Result, Timestamps

SAMPLED = 20
"""How many of the jobs ahead are read for an estimate."""


def accepted(record: Record, ledger: Ledger) -> Accepted:
    """The answer to a submission. The position is 0 also when a worker was quicker than this answer."""
    return Accepted(
        job_id=record.job_id,
        queue=record.queue,
        position=ledger.position(record.job_id) or 0,
        run=record.run,
        seed=record.facts.get("seed"),
    )


def state(record: Record, ledger: Ledger, store: Store) -> JobState:
    """A job as it now stands, with its place in the queue."""
    position = ledger.position(record.job_id) if record.status == "queued" else None
    return JobState(
        **dict(listed(record, store)), queue_position=position, eta_s=eta_s(record, position, ledger)
    )


def listed(record: Record, store: Store) -> JobListed:
    """A job as lists show it."""
    error = record.outcome.error if record.outcome else None
    return JobListed(
        job_id=record.job_id,
        status=record.status,
        progress=record.progress,
        result=result(record, store) if record.status == "completed" else None,
        error=FaultDocument(**error.to_public()) if error else None,
        timestamps=Timestamps(
            created_at=_moment(record.created_at),
            queued_at=_moment(record.queued_at),
            started_at=None if record.claimed_at is None else _moment(record.claimed_at),
            finished_at=None if record.finished_at is None else _moment(record.finished_at),
        ),
        type=record.type,
        queue=record.queue,
        user_id=record.user_id,
        run=record.run,
        attempt=record.attempt,
        stage=record.stage,
    )


def result(record: Record, store: Store) -> Result:
    """What a completed job made. The URLs are storage keys where the store has no public URL."""
    outcome = record.outcome
    metadata = payload.job_metadata(
        record.facts,
        outcome,
        queued_at=record.queued_at,
        claimed_at=record.claimed_at,
        finished_at=record.finished_at,
        worker_version=__version__,
    )
    assets = outcome.assets if outcome else ()
    urls = {
        asset.type: store.url(asset.key) or asset.key for asset in reversed(assets) if asset.key is not None
    }
    texts = [asset.metadata.get("text") for asset in assets if asset.type == "text"]
    return Result(
        assets=[payload.asset_document(asset) for asset in assets],
        metadata=metadata,
        imageUrl=urls.get("image"),
        videoUrl=urls.get("video"),
        text=texts[0] if texts else None,
    )


def eta_s(record: Record, position: int | None, ledger: Ledger) -> float | None:
    """About how many seconds until a job is finished; None when it is.

    Queued: jobs ahead x their mean expected time / workers of the queue at work + the job's own expected
    time. Running: the expected time x the share that is left. What others are running now is not counted.
    """
    own_s = float(record.facts.get("expected_time") or 0.0)
    if record.status == "processing":
        return round(own_s * (100 - record.progress) / 100, 1)
    if record.status != "queued":
        return None
    ahead_s = 0.0
    if position:
        sample = [
            r.facts.get("expected_time") or 0.0 for r in ledger.waiting(record.queue, min(position, SAMPLED))
        ]
        at_work = sum(w.queue == record.queue and w.state != "offline" for w in ledger.workers())
        ahead_s = position * (sum(sample) / len(sample) if sample else own_s) / max(1, at_work)
    return round(ahead_s + own_s, 1)


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
