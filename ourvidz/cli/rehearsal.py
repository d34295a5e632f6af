"""A rehearsal: submits jobs over HTTP, as an edge function does, and checks everything that comes of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from ourvidz.cli.checks import Check, failed, ok, skipped
from ourvidz.cli.rehearsed_files import StepFailed, check_files
from ourvidz.cli.rehearsed_jobs import REFERENCE, RehearsedJob, reference_image, reference_type
from ourvidz.cli.shim import TERMINAL_STATUSES, Shim, ShimError
from ourvidz.jobs.catalog import CATALOG

USER = "rehearsal"
"""The user of all jobs; their ids begin with it too."""
POLL_S = 0.25
CALLBACK_S = 60.0
"""How long a callback may take after the end of its job."""
CANCEL_S = 30.0
"""How long a job may take to end after it was cancelled."""
UNREACHABLE = frozenset({None, 502, 503, 504})
"""HTTP statuses of a shim that is being restarted, and of proxies in front of it."""
LOG_FIX = "see the log of the worker, and docs/troubleshooting.md"
FIXES = {
    "WORKER_UNAVAILABLE": "start a worker of this queue, or leave the type out with --types",
    "CAPACITY_EXCEEDED": "wait until the queue is shorter, or raise OURVIDZ_MAX_QUEUED",
    "UNAUTHORIZED": "set OURVIDZ_API_KEY to a key of OURVIDZ_API_KEYS",
    "FORBIDDEN": "use a key with the scope jobs",
    "STORAGE_ERROR": "run `ourvidz doctor` on the host of the worker: its check of the storage says more",
    "MODEL_LOAD_ERROR": "run `ourvidz doctor` on the host of the worker",
}
"""What to change, by error code."""


class Rehearsal:
    """The jobs of one rehearsal and what has been stored for them.

    `limit_s` bounds the time from the submission of a job to its end. `report` shows what is waited for.
    """

    def __init__(self, shim: Shim, *, limit_s: float, report: Callable[[str], None]) -> None:
        self._shim = shim
        self._limit_s = limit_s
        self._report = report
        self._prefix = f"{USER}-{uuid.uuid4().hex[:8]}"
        self._submitted: list[str] = []
        self._asset_keys: list[str] = []
        self._references: list[str] = []
        self._stuck: dict[str, str] = {}

    def run(self, types: Sequence[str]) -> list[Check]:
        """Rehearse these types, in this order; one result for each step."""
        shim = self._check_shim()
        names = tuple(types)
        if shim.status == "failed":
            return [shim, *(skipped(name, "needs the shim") for name in (*names, REFERENCE, "health"))]
        results = [shim]
        for name in names:
            results.append(self._step(name, partial(RehearsedJob, name, CATALOG[name])))
        row = reference_type(names)
        if row is None:
            results.append(skipped(REFERENCE, "no type of the rehearsal uses references"))
        else:
            results.append(self._step(REFERENCE, lambda: RehearsedJob(REFERENCE, row, self._upload())))
        return [*results, self._check_health()]

    def delete(self) -> Check:
        """Delete the jobs with their files, and the references. Jobs that have not ended are cancelled."""
        left = [job_id for job_id in self._submitted if not self._delete_job(job_id)]
        left += [path for path in self._references if not self._delete_reference(path)]
        left += [key for key in self._asset_keys if self._is_stored(key)]
        if left:
            fix = "delete them with `ourvidz jobs delete ID`, files with DELETE /assets/{key}"
            return failed("deletion", f"still there: {', '.join(left)}", fix)
        counted = f"{_count(len(self._submitted), 'job')} and {_count(len(self._references), 'reference')}"
        return ok("deletion", f"{counted} deleted, with their files")

    def kept(self) -> Check:
        """The result in place of a deletion."""
        return skipped("deletion", f"{_count(len(self._submitted), 'job')} of the user {USER!r} are kept")

    # ---- steps

    def _check_shim(self) -> Check:
        """Whether the shim answers and accepts the key."""
        try:
            health = self._shim.get("/health")
            self._shim.get("/jobs", limit=1)
        except ShimError as error:
            fix = FIXES.get(error.code or "", "start the shim, or set OURVIDZ_URL and OURVIDZ_API_KEY")
            return failed("shim", error.message, fix)
        queues = sorted({worker["queue"] for worker in health["workers"] if worker["queue"] in _QUEUES})
        workers = f"workers of {', '.join(queues)}" if queues else "no worker yet"
        return ok("shim", f"{self._shim.url}, version {health['version']}, {workers}")

    def _check_health(self) -> Check:
        """Whether the installation is healthy after its jobs."""
        try:
            health = self._shim.get("/health")
        except ShimError as error:
            return failed("health", error.message, "see the log of the shim")
        if reasons := [reason["message"] for reason in health["reasons"]]:
            return failed("health", " ".join(reasons), "see docs/reference/operators.md, health")
        return ok("health", "healthy after all jobs")

    def _step(self, name: str, prepare: Callable[[], RehearsedJob]) -> Check:
        """Run one job and check what comes of it."""
        try:
            return ok(name, self._rehearse(prepare()))
        except StepFailed as failure:
            return failed(name, failure.reason, failure.fix)
        except ShimError as error:
            return failed(name, error.message, FIXES.get(error.code or "", LOG_FIX))

    def _rehearse(self, job: RehearsedJob) -> str:
        """Submit a job, wait for its end, check result, files and callback; returns a summary."""
        if reason := self._stuck.get(job.row.queue):
            raise StepFailed(f"not tried: {reason}", FIXES["WORKER_UNAVAILABLE"])
        job_id = f"{self._prefix}-{job.name}"
        began_at = time.monotonic()
        # Before the request: the job may exist although the answer is lost.
        self._submitted.append(job_id)
        self._shim.post("/jobs", job.payload(job_id, USER))
        document = self._wait(job, job_id, began_at)
        duration_s = time.monotonic() - began_at
        result = document["result"]
        _check_metadata(job, result["metadata"])
        self._asset_keys += [
            key for asset in result["assets"] for key in (asset["url"], asset["thumbnail_url"]) if key
        ]
        files = check_files(self._shim, job.row, result)
        return f"completed after {duration_s:.1f} s; {files}; {self._check_callback(job_id)}"

    def _upload(self) -> str:
        """Upload the reference; returns its storage path."""
        path = self._shim.upload_reference(reference_image(), user_id=USER)
        self._references.append(path)
        return path

    def _wait(self, job: RehearsedJob, job_id: str, began_at: float) -> dict[str, Any]:
        """Wait for the end of a job; returns it. Raises `StepFailed` unless it completed in time."""
        document: dict[str, Any] = {"status": "queued", "progress": 0.0}
        while document["status"] not in TERMINAL_STATUSES:
            elapsed_s = time.monotonic() - began_at
            if elapsed_s > self._limit_s:
                self._cancel(job_id)
                raise self._late(job, document)
            self._report(f"{job.name}: {document['status']}, {document['progress']:.0f} %")
            time.sleep(POLL_S)
            try:
                document = self._shim.job(job_id)
            except ShimError as error:
                # A shim that is deployed meanwhile.
                if error.status not in UNREACHABLE:
                    raise
        if document["status"] != "completed":
            error_document = document.get("error") or {}
            code = str(error_document.get("code"))
            reason = f"{document['status']}: {code}: {error_document.get('message')}"
            raise StepFailed(reason, FIXES.get(code, LOG_FIX))
        return document

    def _late(self, job: RehearsedJob, document: dict[str, Any]) -> StepFailed:
        queue = job.row.queue
        if document["status"] == "queued":
            self._stuck[queue] = f"no job of {queue} was started within {self._limit_s:g} s"
            return StepFailed(self._stuck[queue], FIXES["WORKER_UNAVAILABLE"])
        reason = f"{document['progress']:.0f} % after {self._limit_s:g} s"
        return StepFailed(
            reason, "see the log of the worker, or raise --timeout: models may still be loading"
        )

    def _cancel(self, job_id: str) -> None:
        """Cancel a job that is late: it must not keep the others from its worker."""
        try:
            self._shim.post(f"/jobs/{quote(job_id, safe='')}/cancel")
        except ShimError as error:
            self._report(f"{job_id} was not cancelled: {error.message}")

    def _check_callback(self, job_id: str) -> str:
        """Wait until the callback of a job's end is delivered; returns a summary."""
        self._report(f"{job_id}: waiting for its callback")
        deadline = time.monotonic() + CALLBACK_S
        while True:
            callback = self._shim.get(f"/jobs/{quote(job_id, safe='')}/callback")
            if callback["state"] != "pending" or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        if callback["state"] == "delivered":
            return "callback delivered"
        if callback["state"] is None:
            raise StepFailed("there is no callback for its end", "see `ourvidz ledger check`")
        raise _undelivered(callback)

    # ---- deletion

    def _delete_job(self, job_id: str) -> bool:
        """Delete a job, whatever has become of it. Returns whether it is gone."""
        self._report(f"deleting {job_id}")
        path = f"/jobs/{quote(job_id, safe='')}"
        deadline = time.monotonic() + CANCEL_S
        cancelled = False
        while True:
            try:
                if self._shim.job(job_id)["status"] in TERMINAL_STATUSES:
                    self._shim.delete(f"{path}?force=true")
                    return True
                if not cancelled:
                    self._shim.post(f"{path}/cancel")
                    cancelled = True
            except ShimError as error:
                if error.status == 404:
                    return True
                if error.status not in UNREACHABLE | {409}:
                    return False
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)

    def _delete_reference(self, path: str) -> bool:
        try:
            self._shim.delete(f"/references/{quote(path)}?user_id={USER}")
        except ShimError:
            return False
        return not self._is_stored(path)

    def _is_stored(self, key: str) -> bool:
        try:
            self._shim.fetch(f"/assets/{quote(key)}")
        except ShimError as error:
            return error.status != 404
        return True


_QUEUES = frozenset(row.queue for row in CATALOG.values())


def _check_metadata(job: RehearsedJob, metadata: dict[str, Any]) -> None:
    """Raise `StepFailed` if the metadata of a completed job is incomplete, or tells of a fallback."""
    if metadata.get("job_type") != job.row.name:
        raise StepFailed(f"its metadata has the type {metadata.get('job_type')!r}", LOG_FIX)
    if job.row.stores_assets and not metadata.get("receipt"):
        raise StepFailed("its metadata has no receipt", "upgrade the worker to the release of the shim")
    if job.row.enhance and metadata.get("enhancement_strategy") == "fallback":
        reason = metadata.get("enhancement_reason") or metadata.get("enhancement_error") or "no reason given"
        fix = "start a chat worker with its checkpoint, or raise OURVIDZ_ENHANCE_WITHIN_S"
        raise StepFailed(f"its prompt was not enhanced: {reason}", fix)
    if job.reference and (metadata.get("reference_fallback") or not metadata.get("reference_backend")):
        reason = metadata.get("reference_error_reason") or "no reason given"
        fix = "the worker must be able to read the storage of the shim: `ourvidz doctor` on both hosts"
        raise StepFailed(f"its reference was not used: {reason}", fix)


def _undelivered(callback: dict[str, Any]) -> StepFailed:
    """The failure of a callback that is pending or a dead letter."""
    last = callback["last_error"] or f"HTTP {callback['last_status']}"
    if callback["state"] == "pending" and callback["deliveries"] == 0:
        return StepFailed("its callback was not sent", "start `ourvidz worker io`")
    reason = f"its callback was not accepted after {_count(callback['deliveries'], 'delivery')}: {last}"
    if callback["last_status"] in (401, 403):
        fix = "set the same secrets at the receiver; `ourvidz doctor` checks its signatures"
    elif callback["last_status"] in (400, 404, 422):
        fix = f"the receiver must accept jobs that it does not know, at least ids that begin with {USER}-"
    else:
        fix = "see the log of the receiver; `ourvidz doctor` checks whether it can be reached"
    return StepFailed(reason, fix)


def _count(number: int, noun: str) -> str:
    plural = noun if number == 1 else f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {plural}"
