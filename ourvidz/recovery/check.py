"""`ourvidz ledger check`: verifies the invariants of the ledger and the broker while everything runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ourvidz.errors import InternalError
from ourvidz.jobs.catalog import QUEUES
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.findings import Finding
from ourvidz.records.record import Record
from ourvidz.recovery.inspection import check_events, check_jobs, check_user_indexes
from ourvidz.recovery.quarantine import recheck_quarantined

MESSAGE_GRACE_S = 60.0
"""How long a published job may be due without a message: within that time the sweep publishes it again."""
SECOND_LOOK_S = 1.0
"""Pause before a job without a message is looked at again: its message may have been between two places."""


@dataclass(frozen=True, slots=True)
class Messages:
    """The messages of one queue that no worker has finished: the ids of their jobs, and the number of entries
    that are no messages of ours."""

    job_ids: frozenset[str]
    foreign: int


class Broker(Protocol):
    """What the check needs of the message broker."""

    def publish(self, record: Record) -> bool:
        """Publish the message of a job. False when the broker cannot be reached."""

    def messages(self, queue: str) -> Messages:
        """Read the messages of a queue, without taking them."""


@dataclass(slots=True)
class CheckReport:
    """What was checked, and what was found."""

    jobs: int = 0
    events: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is left to do: nothing was found, or all of it was mended."""
        return all(finding.mended for finding in self.findings)


def check_ledger(
    ledger: Ledger, broker: Broker, *, repair: bool = False, sleep: Callable[[float], None] = time.sleep
) -> CheckReport:
    """Check every job, event, index and queue; with `repair`, mend what is found.

    Raises `WorkerUnavailable` when the ledger cannot be reached.
    """
    # First: what follows needs them.
    keys = ledger.check_keys(repair=repair)
    if repair:
        recheck_quarantined(ledger, older_than_s=0)
    job_ids, event_ids = sorted(ledger.job_ids()), sorted(ledger.event_ids())
    report = CheckReport(jobs=len(job_ids), events=len(event_ids), findings=keys)
    report.findings += check_events(ledger, event_ids, repair=repair)
    report.findings += check_jobs(ledger, job_ids, repair=repair)
    report.findings += check_user_indexes(ledger, repair=repair)
    if repair:
        report.findings = [_with_document_mended(ledger, finding) for finding in report.findings]
    for queue in QUEUES.values():
        report.findings += _check_queue(ledger, broker, queue, repair=repair, sleep=sleep)
    return report


def _with_document_mended(ledger: Ledger, finding: Finding) -> Finding:
    """End a queued job whose document is gone: no worker could ever run it, and its caller is waiting."""
    if finding.code != "document":
        return finding
    record = ledger.get(finding.subject)
    # Checking all jobs took a while, and another job may have the id by now. From here on the fence tells.
    again = any(each.code == "document" for each in check_jobs(ledger, [finding.subject], repair=False))
    error = InternalError("what was asked for is no longer stored, so the job cannot run")
    ended = again and record is not None and ledger.end(record, outcome=Outcome.failure(error))
    return Finding(finding.code, finding.subject, finding.detail, mended=ended)


def _check_queue(
    ledger: Ledger, broker: Broker, queue: str, *, repair: bool, sleep: Callable[[float], None]
) -> list[Finding]:
    """Compare the queued jobs of a queue with its messages."""
    findings = []
    messages = broker.messages(queue)
    if messages.foreign:
        findings.append(Finding("message", queue, f"{messages.foreign} entries are no messages of ours"))
    missing = _without_message(ledger, queue, messages)
    if missing:
        sleep(SECOND_LOOK_S)
        again = _without_message(ledger, queue, broker.messages(queue))
        for job_id, record in again.items():
            if job_id in missing and missing[job_id].publishes == record.publishes:
                mended = repair and broker.publish(record)
                detail = f"it waits in {queue} without a message"
                findings.append(Finding("message", job_id, detail, mended))
    return findings


def _without_message(ledger: Ledger, queue: str, messages: Messages) -> dict[str, Record]:
    """The jobs that have long been due and published, and have no message. Read after the messages: a job
    whose message was taken in between is no longer queued."""
    if queue in ledger.paused_queues():
        return {}
    before = ledger.now() - MESSAGE_GRACE_S
    return {
        record.job_id: record
        for record in ledger.queued(queue, limit=1_000_000)
        if record.job_id not in messages.job_ids
        and record.enhancement != "wanted"
        and max(record.published_at or record.queued_at, record.due_at) < before
    }
