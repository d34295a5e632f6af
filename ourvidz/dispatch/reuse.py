"""Answers a job from a finished one that has the same result, without a worker: `config.reuse`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from ourvidz import log
from ourvidz.errors import NewerRelease, OurvidzError
from ourvidz.jobs.job import ImageJob, Job, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.jobs.reuse import is_reusable, result_key, wants_reuse
from ourvidz.records.record import Claim, Record
from ourvidz.storage.keys import asset_folder
from ourvidz.wiring import control
from ourvidz.workflows.staging import FenceLost, StagedFiles

REUSER = "reuse"
"""The family in the worker id of reused results."""
NOT_REUSED = (
    "gpu_seconds",
    "gpu_cost",
    "embedding_cache",
    "resumed_from_step",
    "resume_refused",
    "memory_rung",
)
"""Metadata of a run that a reused result has no share in."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class ReusableResult:
    """A finished job, its outcome, and the storage keys of its files."""

    job_id: str
    outcome: Outcome
    keys: tuple[str, ...]


def find_reusable(job: Job) -> ReusableResult | None:
    """The last completed job of the same user with the same result, with its files, if `job` asks for reuse.
    None where there is none, or where a file of it is gone."""
    key = result_key(job) if wants_reuse(job) else None
    if key is None:
        return None
    app = control.current()
    job_id = app.ledger.result_of(key)
    try:
        record = None if job_id is None or job_id == job.id else app.ledger.get(job_id)
        if record is None or record.user_id != job.user_id or record.outcome is None:
            return None
        earlier_job = app.ledger.job(record.job_id)
        # Under the id of a deleted job there may be another one by now.
        if earlier_job is None or result_key(earlier_job) != key or not is_reusable(record.outcome):
            return None
        if app.settings.image_classifier and record.outcome.metadata.get("pictures_judged") is not True:
            return None
        assets = record.outcome.assets
        keys = tuple(key for asset in assets for key in (asset.key, asset.thumbnail_key) if key is not None)
        if not all(app.store.exists(key) for key in keys):
            return None
        return ReusableResult(record.job_id, record.outcome, keys)
    except (NewerRelease, OurvidzError) as error:
        _log.warning("result_unreadable", job_id=job.id, reason=error.message)
        return None


def reuse_result(record: Record, earlier: ReusableResult) -> bool:
    """Complete a job that was just recorded with the result of an earlier one.

    It is claimed, gets copies of the files under its own keys, and ends with its own callbacks.

    Returns False if it could not be claimed or its files not be copied; then it is queued as any other. If
    this process dies, the lease ends and a worker runs the job.
    """
    app = control.current()
    worker_id, lease_s = app.settings.worker_id(REUSER), app.settings.lease_s
    token = uuid.uuid4().hex
    claim = app.ledger.claim(record.job_id, record.run, worker_id=worker_id, lease_s=lease_s, token=token)
    if claim is None:
        return False
    files = StagedFiles(claim, app.ledger)
    folders: list[str] = []

    def check() -> None:
        if not app.ledger.renew(claim, lease_s=lease_s):
            raise FenceLost(claim.job_id)

    try:
        outcome = _copied_outcome(claim, earlier)
        copies = {_own_key(claim, key): key for key in earlier.keys}
        for key, source in copies.items():
            files.copy(app.store, source, key, check=check)
        files.publish(copies, check=check)
        emptied = files.emptied()
        if app.ledger.end(claim, outcome=outcome, worker_id=worker_id, emptied_folders=emptied):
            folders = emptied
    except FenceLost:
        _log.warning("fence_lost", job_id=record.job_id)
    except OurvidzError as error:
        _log.warning("reuse_failed", job_id=record.job_id, reason=error.message)
        return not app.ledger.release(claim, code=error.code, due_in_s=0.0)
    finally:
        files.discard(folders)
    return True


def _copied_outcome(claim: Claim, earlier: ReusableResult) -> Outcome:
    """The earlier outcome with keys of this job."""
    assets = tuple(
        asset.model_copy(
            update={
                "key": asset.key and _own_key(claim, asset.key),
                "thumbnail_key": asset.thumbnail_key and _own_key(claim, asset.thumbnail_key),
            }
        )
        for asset in earlier.outcome.assets
    )
    metadata = {name: value for name, value in earlier.outcome.metadata.items() if name not in NOT_REUSED}
    reused = {"reused_from": earlier.job_id, "generation_time": 0.0}
    return earlier.outcome.model_copy(update={"assets": assets, "metadata": metadata | reused})


def _own_key(claim: Claim, key: str) -> str:
    """The key of this job for a file of the earlier one."""
    job = claim.job
    assert isinstance(job, ImageJob | VideoJob)
    assert job.user_id is not None
    return f"{asset_folder(job.bucket, job.user_id, job.id)}/{key.rpartition('/')[2]}"
