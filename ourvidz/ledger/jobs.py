"""The life of a job: registration, claim, progress, end, cancellation, deletion."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from ourvidz.errors import Conflict, NotFound
from ourvidz.jobs.job import Job
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.base import STREAM_TTL_S, LedgerBase
from ourvidz.ledger.connection import new_call_token
from ourvidz.records.allowances import JobLimits, load_admission
from ourvidz.records.calls import ClaimRequest, Commit, ItemKind, Report, claim_identity
from ourvidz.records.codec import load_record, pairs, registration_arguments
from ourvidz.records.record import Admission, BrokerEntry, Claim, Record, Verdict


class JobOperations(LedgerBase):
    """Verbs that change a job."""

    def register(
        self,
        job: Job,
        *,
        priority: int,
        suppress_callbacks: bool = False,
        entry: BrokerEntry | None = None,
        limits: JobLimits | None = None,
    ) -> Admission:
        """Record a new job as `queued`: run 1, attempt 0, due now; or return the record under its id.

        Nothing changes when the id is taken. The first item of the job's stream is its state `queued`. With
        `suppress_callbacks` no run of the job ever adds an outbox event. `entry`: the message of the job,
        published in the same transaction as the record of a new one. `limits` are charged for a new job only:
        `RateLimited` or `CapacityExceeded` when they refuse it.

        `WorkerUnavailable` also when too few replicas confirm the record in time; it stands, and the same
        call returns it later.
        """
        arguments = registration_arguments(job, priority, suppress_callbacks, entry, new_call_token())
        created, fields, position, standings = self._connection.run_replicated_script(
            "register", *arguments, limits and limits.to_json()
        )
        allowances = load_admission(limits, standings)
        record = load_record(job.id, pairs(fields))
        return Admission(
            position=None if position < 0 else position,
            created=bool(created),
            same=job.is_repeat_of(record.fingerprint, record.callback_metadata, record.request),
            record=record,
            allowances=allowances,
        )

    def reopen(self, job_id: str, *, priority: int, limits: JobLimits | None = None) -> Record:
        """Queue a failed or cancelled job again as its next run.

        Attempt, failures, progress, outcome, enhancement result and cancel flag start afresh; the fence goes
        on. `NotFound`; `Conflict` in any other state, or when the job document is no longer stored; errors of
        `limits` as in `register`.

        `WorkerUnavailable` also when too few replicas confirm the run in time; it stands, and the same call
        returns it later, as long as no worker has claimed it.
        """
        args = (job_id, priority, new_call_token(), limits and limits.to_json())
        answer = self._connection.run_replicated_script("reopen", *args)
        if answer[0] == "limited":
            load_admission(limits, answer[2])
        if answer[0] == "queued" and self._connection.replica_acks:
            record = load_record(job_id, pairs(answer[1]))
            if record.run > 1 and record.attempt == 0:
                return record
        return _record_of(job_id, "reopened", answer)

    def mark_published(self, job_id: str, run: int) -> None:
        """Note that a message of this run was handed to the broker: `published_at`, `publishes` + 1."""
        self._connection.run_script("mark_published", job_id, run, new_call_token())

    def claim(
        self, job_id: str, run: int, *, worker_id: str, lease_s: float, token: str, beside: str | None = None
    ) -> Claim | None:
        """Compare-and-set `queued` → `processing`: attempt + 1, a new fence, a lease.

        Adds a `processing` outbox event, due now, and a `state` item. An enhancement that the job still
        awaits is over. `token` is unique to the claim; sent twice, it gets the same claim with a lease from
        now. None when the job is not queued in this run, is not due, or is to be cancelled; also when its
        queue is paused, the worker draining or failed, or the document of a newer release, then the record
        is marked as unpublished and the sweep publishes it again, the last one after some seconds.

        `beside`: the job that leads the batch which this one joins. Both attempts are then `shared`: if the
        worker is lost, it is not known which of them was the cause.
        """
        (claim,) = self.claims([ClaimRequest(job_id, run, worker_id, lease_s, token, beside)])
        return claim

    def claims(self, requests: Sequence[ClaimRequest]) -> list[Claim | None]:
        """Many claims in one round trip. An error may leave some of them made: `claim` with the same token
        returns them."""
        sent_at = time.monotonic()
        answers = self._connection.run_scripts("claim", [request.arguments() for request in requests])
        return [request.claim(answer, sent_at) for request, answer in zip(requests, answers, strict=True)]

    def step(
        self,
        claim: Claim,
        *,
        progress: float | None = None,
        stage: str | None = None,
        items: Iterable[tuple[ItemKind, dict[str, Any]]] = (),
        add_event: bool = False,
        folders: Sequence[str] = (),
    ) -> Verdict:
        """Record progress (0 to 100, never decreasing within an attempt), stage and stream items.

        With `add_event` a `processing` outbox event carries the progress in its metadata. A token item marks
        the run as `streamed`. `folders` are those that the attempt is about to store files in: if it dies,
        a keeper finds them. Returns whether the attempt may go on; with a lost claim nothing changes.
        """
        (verdict,) = self.steps([Report(claim, progress, stage, tuple(items), add_event, folders)])
        return verdict

    def steps(self, reports: Sequence[Report]) -> list[Verdict]:
        """Many reports of `step` in one round trip. An error may leave some of them recorded."""
        calls = [report.arguments() for report in reports]
        return [Verdict(answer) for answer in self._connection.run_scripts("step", calls, quick=True)]

    def renew(self, claim: Claim, *, lease_s: float) -> bool:
        """Extend the lease to now + lease_s. False when the claim is lost."""
        return bool(self._connection.run_script("renew", *claim_identity(claim), lease_s))

    def release(self, claim: Claim, *, code: str, due_in_s: float) -> bool:
        """Give an attempt that failed with error `code` back to the queue, due in `due_in_s`.

        failures[code] + 1, a new fence. Sent twice, it answers the same. False when the claim is lost.
        """
        # One claim is released once, so the claim names the call: also when the caller sends it again.
        call = f"{claim.job_id}:{claim.fence}:{claim.token}"
        args = (*claim_identity(claim), code, due_in_s, call)
        return bool(self._connection.run_script("release", *args))

    def end(
        self,
        job: Claim | Record,
        *,
        outcome: Outcome,
        worker_id: str | None = None,
        if_expired: bool = False,
        emptied_folders: Sequence[str] = (),
    ) -> bool:
        """Commit the terminal status and its outbox event, due now, in one transaction; adds a `done` item.

        `job` is the claim, or the record as it was read. Works on a `queued` or `processing` record with
        exactly this run, fence and token, else False; with `if_expired` on a `processing` one only when its
        lease has ended by now. The same outcome sent twice returns True twice and adds
        one event. A document over the size limit is deleted: of a completed job at once, else after the retry
        window. `emptied_folders`: folders of the claim's attempt in which no file is left.
        """
        (committed,) = self.ends([Commit(job, outcome, worker_id, if_expired, emptied_folders)])
        return committed

    def ends(self, commits: Sequence[Commit]) -> list[bool]:
        """Many commits of `end` in one round trip. An error may leave some of them made."""
        own = self._options
        limits = (own.document_limit, int(own.retry_window_s), own.record_ttl_s, int(STREAM_TTL_S))
        calls = [commit.arguments(*limits) for commit in commits]
        return [bool(answer) for answer in self._connection.run_scripts("end", calls)]

    def request_cancel(self, job_id: str) -> Record:
        """Set the cancel flag and return the record. `NotFound`; `Conflict` when the job has ended."""
        return _record_of(job_id, "cancelled", self._connection.run_script("request_cancel", job_id))

    def begin_deletion(self, job_id: str, *, force: bool = False) -> Record:
        """Mark an ended job as being deleted, and return its record: it cannot run again, and it stays until
        `delete`. With `force`, pending callbacks are cancelled. A second time nothing changes.

        `NotFound`; `Conflict` while the job has not ended or, without `force`, a callback is pending.
        """
        answer = self._connection.run_script("begin_deletion", job_id, int(force))
        return _record_of(job_id, "deleted", answer)

    def delete(self, job_id: str) -> Record:
        """Delete an ended job with its stream, document and events, and return its last record.

        `NotFound`; `Conflict` while the job has not ended or one of its callbacks is pending, unless its
        deletion has begun before.
        """
        return _record_of(job_id, "deleted", self._connection.run_script("delete", job_id, new_call_token()))


def _record_of(job_id: str, participle: str, answer: list[Any]) -> Record:
    """The record in a script's answer, or the error for its reason: a status, or what is missing."""
    reason = answer[0]
    if reason == "ok":
        return load_record(job_id, pairs(answer[1]))
    if reason == "missing":
        raise NotFound(f"there is no job {job_id}")
    if reason == "document":
        raise Conflict("what was asked for is no longer kept, so the job cannot run again")
    if reason == "callback":
        raise Conflict("the job's callback is still on its way")
    raise Conflict(f"a {reason} job cannot be {participle}")
