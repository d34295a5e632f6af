"""Builds the documents of the job routes from ledger records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from ourvidz import __version__, log
from ourvidz.callbacks import payload
from ourvidz.errors import StorageError
from ourvidz.jobs.outcome import Asset
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.web.documents import (
    Accepted,
    CallbackState,
    JobErrorDocument,
    JobState,
    JobSummary,
    Result,
    Timestamps,
)
from ourvidz.wiring.control import ControlPlane

SAMPLE_SIZE = 20
"""Jobs ahead in the queue that are read for an estimate."""
THUMBNAIL = "thumbnail"

_log = log.get(__name__)


def accepted(record: Record, position: int | None) -> Accepted:
    """The response to a submission. The position is 0 also when a worker has claimed the job already."""
    return Accepted(
        job_id=record.job_id,
        queue=record.queue,
        position=position or 0,
        run=record.run,
        seed=record.callback_metadata.get("seed"),
    )


def state(record: Record, app: ControlPlane) -> JobState:
    """The current state of a job, with its position in the queue."""
    position = app.ledger.queue_position(record.job_id) if record.status == "queued" else None
    (summary,) = summaries([record], app)
    return JobState(**dict(summary), queue_position=position, eta_s=eta_s(record, position, app.ledger))


def callback_state(record: Record, app: ControlPlane) -> CallbackState:
    """The delivery of the callback that reports a job's end."""
    event = app.ledger.last_event(record) if record.finished else None
    if event is None or not event.terminal:
        return CallbackState(job_id=record.job_id)
    return CallbackState(
        job_id=record.job_id,
        event_id=event.event_id,
        state=event.state,
        deliveries=event.deliveries,
        last_status=event.last_status,
        last_error=event.last_error,
        settled_at=None if event.settled_at is None else _utc(event.settled_at),
    )


def summaries(records: Iterable[Record], app: ControlPlane) -> list[JobSummary]:
    """Jobs as lists contain them. The URLs of all are signed together."""
    listed = list(records)
    urls = _urls([key for record in listed for key in _first_keys(record).values()], app)
    return [_summary(record, urls) for record in listed]


def _summary(record: Record, urls: Mapping[str, str]) -> JobSummary:
    error = record.outcome.error if record.outcome else None
    return JobSummary(
        job_id=record.job_id,
        status=record.status,
        progress=record.progress,
        result=_result(record, urls) if record.status == "completed" else None,
        error=JobErrorDocument(**error.to_public()) if error else None,
        timestamps=Timestamps(
            created_at=_utc(record.created_at),
            queued_at=_utc(record.queued_at),
            started_at=None if record.claimed_at is None else _utc(record.claimed_at),
            finished_at=None if record.finished_at is None else _utc(record.finished_at),
        ),
        type=record.type,
        queue=record.queue,
        user_id=record.user_id,
        run=record.run,
        attempt=record.attempt,
        stage=record.stage,
    )


def _result(record: Record, urls: Mapping[str, str]) -> Result:
    """The output of a completed job. A file without a URL is named by its storage key."""
    outcome = record.outcome
    metadata = payload.job_metadata(
        record.callback_metadata,
        outcome,
        queued_at=record.queued_at,
        claimed_at=record.claimed_at,
        finished_at=record.finished_at,
        worker_version=__version__,
    )
    assets = outcome.assets if outcome else ()
    links = {kind: urls.get(key, key) for kind, key in _first_keys(record).items()}
    texts = [asset.metadata.get("text") for asset in assets if asset.type == "text"]
    return Result(
        assets=[payload.asset_document(asset) for asset in assets],
        metadata=metadata,
        imageUrl=links.get("image"),
        videoUrl=links.get("video"),
        thumbnailUrl=links.get(THUMBNAIL),
        text=texts[0] if texts else None,
    )


def _first_keys(record: Record) -> dict[str, str]:
    """The keys of the files that a completed job is shown with: the first of each kind."""
    assets: tuple[Asset, ...] = record.outcome.assets if record.outcome else ()
    keys = {asset.type: asset.key for asset in reversed(assets) if asset.key is not None}
    thumbnails = [asset.thumbnail_key for asset in assets if asset.thumbnail_key is not None]
    return keys | ({THUMBNAIL: thumbnails[0]} if thumbnails else {})


def _urls(keys: list[str], app: ControlPlane) -> dict[str, str]:
    """URLs by key, signed now. None while the storage cannot sign: a job's state can be read nevertheless."""
    try:
        return app.store.urls(keys, lifetime_s=app.settings.signed_url_s) if keys else {}
    except StorageError as error:
        _log.warning("urls_not_signed", reason=error.message)
        return {}


def eta_s(record: Record, position: int | None, ledger: Ledger) -> float | None:
    """Estimated seconds until a job is finished; None for a finished one.

    Queued: jobs ahead x their mean expected time / live workers of the queue + the job's own expected time.
    Running: expected time x the share that is left. Jobs that other workers are running are not counted.
    """
    own_s = float(record.callback_metadata.get("expected_time") or 0.0)
    if record.status == "processing":
        return round(own_s * (100 - record.progress) / 100, 1)
    if record.status != "queued":
        return None
    ahead_s = 0.0
    if position:
        sample = [
            ahead.callback_metadata.get("expected_time") or 0.0
            for ahead in ledger.queued(record.queue, min(position, SAMPLE_SIZE))
        ]
        live = sum(worker.queue == record.queue for worker in ledger.online_workers())
        ahead_s = position * (sum(sample) / len(sample) if sample else own_s) / max(1, live)
    return round(ahead_s + own_s, 1)


def _utc(timestamp_s: float) -> datetime:
    return datetime.fromtimestamp(timestamp_s, UTC)
