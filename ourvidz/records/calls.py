"""What attempts report to the ledger, as arguments of the scripts `claim`, `step` and `end`.

The headers of the scripts describe the arguments.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ourvidz.jobs.job import JOB_VERSION, load_job
from ourvidz.jobs.outcome import Outcome
from ourvidz.jobs.reuse import is_reusable, result_key
from ourvidz.records.codec import counter_increments, dump_json, dump_outcome, load_record, pairs
from ourvidz.records.gpu_usage import usage_amounts
from ourvidz.records.record import Claim, Record

Arguments = tuple[object, ...]
ItemKind = Literal["progress", "preview", "token"]


def claim_identity(job: Claim | Record) -> tuple[str, int, int, str]:
    """What the scripts recognise a claim by: job id, run, fence, and the token, '' for a queued job."""
    return job.job_id, job.run, job.fence, job.token or ""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A worker wants to run a job; the fields are the parameters of `Ledger.claim`."""

    job_id: str
    run: int
    worker_id: str
    lease_s: float
    token: str
    beside: str | None = None

    def arguments(self) -> Arguments:
        """The arguments of `claim`."""
        return self.job_id, self.run, self.worker_id, self.lease_s, self.token, JOB_VERSION, self.beside

    def claim(self, answer: list[Any] | None, sent_at: float) -> Claim | None:
        """The claim in the script's answer to a call of `sent_at`, in seconds of the monotonic clock; None
        for a refusal."""
        if answer is None:
            return None
        fields, document = answer
        record = load_record(self.job_id, pairs(fields))
        return Claim(load_job(document), record, lease_deadline=sent_at + self.lease_s)


@dataclass(frozen=True, slots=True)
class Report:
    """What an attempt reports while it runs; the fields are the parameters of `Ledger.step`. A report that is
    sent again, under its `call_token`, changes nothing."""

    claim: Claim
    progress: float | None = None
    stage: str | None = None
    items: Sequence[tuple[ItemKind, dict[str, Any]]] = ()
    add_event: bool = False
    folders: Sequence[str] = ()
    call_token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def arguments(self) -> Arguments:
        """The arguments of `step`."""
        percent = None if self.progress is None else repr(min(max(float(self.progress), 0.0), 100.0))
        wants_event = "1" if self.add_event else None
        items = (part for kind, data in self.items for part in (kind, dump_json(data)))
        identity = claim_identity(self.claim)
        rest = (wants_event, len(self.folders), *self.folders, *items)
        return (*identity, percent, self.stage, self.call_token, *rest)


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a run; the fields are the parameters of `Ledger.end`."""

    job: Claim | Record
    outcome: Outcome
    worker_id: str | None = None
    if_expired: bool = False
    emptied_folders: Sequence[str] = ()

    def arguments(self, *limits: int) -> Arguments:
        """The arguments of `end`. `limits`: `limit`, `retry_window_s`, `keep_s` and `stream_s`."""
        job, outcome = self.job, self.outcome
        counters = counter_increments(job.type, outcome, job.callback_metadata)
        usage = usage_amounts(job.user_id, job.type, outcome.metadata)
        return (
            *claim_identity(job),
            outcome.status,
            dump_outcome(outcome),
            dump_json(outcome.error.to_public()) if outcome.error else None,
            self.worker_id,
            *limits,
            int(self.if_expired),
            result_key(job.job) if isinstance(job, Claim) and is_reusable(outcome) else None,
            len(counters),
            len(usage),
            *(part for pair in (*counters.items(), *usage.items()) for part in pair),
            *self.emptied_folders,
        )
