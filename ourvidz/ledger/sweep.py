"""Bringing back what got lost: the ledger is the truth, a message only a hint.

A sweep runs every few seconds, on one worker of its own. It tells one story per kind of loss; each verb
it uses is atomic and fenced, so two sweeps at once do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ourvidz import log
from ourvidz.errors import Cancelled, OurvidzError, WorkerLost, WorkerUnavailable
from ourvidz.jobs.catalog import QUEUES
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import Record
from ourvidz.ledger.store import Ledger

PUBLISH_GRACE_S = 2.0
"""How long a record may be unpublished before the sweep takes it for forgotten."""
REPUBLISH_CAP_S = 300.0
LIFT_AFTER_S = 60.0
DISPATCHES = 100
"""How many deliveries one sweep asks for: a long outage of receivers must not slow recovery down."""
URGENT = 0
TOO_LATE = "The enhancement of the prompt took too long: it was used as it is."

_log = log.get(__name__)


class Outlet(Protocol):
    """How the sweep reaches the broker."""

    def publish(self, record: Record) -> bool:
        """Hand a job's message to the broker. False when the broker could not be reached."""

    def deliver(self, job_id: str) -> None:
        """Hand a delivery to the callback worker."""

    def wake(self, queue: str) -> None:
        """Ask the workers of a queue, except those that drain, to take from it."""

    def waiting_messages(self, queue: str) -> int:
        """How many messages the broker holds for a queue and no worker has taken."""

    def deliveries_waiting(self) -> int:
        """How many deliveries the broker holds."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How long things may take, in seconds."""

    interval_s: float
    lease_s: float
    empty_s: float
    unclaimed_s: float
    retention_s: float
    enhance_within_s: float


@dataclass(slots=True)
class Report:
    """What one sweep did."""

    rearmed: int = 0
    recovered: int = 0
    ended: int = 0
    republished: int = 0
    lifted: int = 0
    given_up: int = 0
    dispatched: int = 0
    purged: int = 0


def sweep(ledger: Ledger, outlet: Outlet, rules: Rules) -> Report:
    """Go through everything once."""
    report = Report()
    gap_s = ledger.tick()
    if gap_s is None or gap_s > 3 * rules.interval_s:
        # The server or the sweep was away: leases ran out without their holders being at fault. Whoever
        # still holds an unchanged fence renews; whoever does not is found one lease later.
        report.rearmed = ledger.rearm(rules.lease_s)
    else:
        for record in ledger.expired():
            _count(report, recover(ledger, outlet, record))
    paused = ledger.paused()
    for queue in QUEUES.values():
        _sweep_queue(ledger, outlet, rules, queue, report, paused=queue in paused)
    if outlet.deliveries_waiting() == 0:
        for job_id in ledger.due(DISPATCHES):
            outlet.deliver(job_id)
            report.dispatched += 1
    report.purged = ledger.purge(older_than_s=rules.retention_s)
    # Again at the end: the next gap is the time nobody swept, however long this sweep took.
    ledger.tick()
    return report


def recover(ledger: Ledger, outlet: Outlet, record: Record) -> str | None:
    """Take a job back from a worker that is gone: queue it again, or end it when its attempts are used up.
    Answers `ended`, `recovered`, or None when somebody else decided first."""
    error: OurvidzError | None = None
    if record.cancel_requested:
        error = Cancelled("the job was cancelled")
    elif not record.repeatable:
        error = WorkerLost("the worker was lost in the middle of an answer that its caller was reading")
    elif record.failures.get(WorkerLost.code, 0) + 1 >= WorkerLost.attempts:
        error = WorkerLost(f"the worker was lost {WorkerLost.attempts} times while it ran this job")
    if error is not None:
        return "ended" if _end(ledger, outlet, record, error) else None
    if not ledger.lose(record.job_id, fence=record.fence):
        return None
    _log.warning("worker_lost", job_id=record.job_id, worker_id=record.worker_id, attempt=record.attempt)
    again = ledger.get(record.job_id)
    if again is not None:
        outlet.publish(again)
    return "recovered"


def _count(report: Report, what: str | None) -> None:
    if what == "ended":
        report.ended += 1
    elif what == "recovered":
        report.recovered += 1


def _end(ledger: Ledger, outlet: Outlet, record: Record, error: OurvidzError) -> bool:
    outcome = Outcome.failure(error)
    ended = ledger.end(record.job_id, run=record.run, fence=record.fence, outcome=outcome)
    if ended:
        outlet.deliver(record.job_id)
    return ended


def _sweep_queue(
    ledger: Ledger, outlet: Outlet, rules: Rules, queue: str, report: Report, *, paused: bool
) -> None:
    empty_since = ledger.empty_since(queue, outlet.waiting_messages(queue) == 0)
    now = ledger.now()
    starved = empty_since is not None and now - empty_since >= rules.empty_s
    records = ledger.waiting(queue)
    if records and starved and not paused:
        # The broadcast that resumed a queue may have met a worker that was just reconnecting.
        outlet.wake(queue)
    for record in records:
        if record.cancel_requested:
            report.ended += _end(ledger, outlet, record, Cancelled("the job was cancelled"))
        elif now - record.queued_at > rules.unclaimed_s:
            waited = WorkerUnavailable(f"no worker took this job within {rules.unclaimed_s / 3600:g} hours")
            report.ended += _end(ledger, outlet, record, waited)
        elif record.enhancement == "wanted" and record.published_at is not None:
            # Its generation is published by the enhancement, so no message in this queue is missing.
            late = not paused and now - record.published_at >= rules.enhance_within_s
            report.given_up += late and _give_up(ledger, outlet, record)
        elif record.due_at <= now and not paused:
            lifted = _lift(ledger, record, now)
            report.lifted += lifted
            if lifted or _forgotten(ledger, record, now, starved=starved):
                report.republished += outlet.publish(ledger.get(record.job_id) or record)


def _give_up(ledger: Ledger, outlet: Outlet, record: Record) -> bool:
    """Generate without the words that were waited for. False when they have just been found."""
    if not ledger.give_up_enhancing(record.job_id, run=record.run, reason=TOO_LATE):
        return False
    outlet.publish(ledger.get(record.job_id) or record)
    return True


def _lift(ledger: Ledger, record: Record, now: float) -> bool:
    """Whether a job that more urgent ones keep overtaking has now been made urgent itself."""
    if record.priority == URGENT or now - record.queued_at < LIFT_AFTER_S:
        return False
    overtaken = any(
        ledger.claimed_at(record.queue, priority) > record.queued_at
        for priority in range(URGENT, record.priority)
    )
    return overtaken and ledger.lift(record.job_id, run=record.run, priority=URGENT)


def _forgotten(ledger: Ledger, record: Record, now: float, *, starved: bool) -> bool:
    """Whether the message of a due, queued job is most likely gone."""
    if record.published_at is None:
        return now - max(record.queued_at, record.due_at) >= PUBLISH_GRACE_S
    pause_s = min(REPUBLISH_CAP_S, PUBLISH_GRACE_S * 2 ** max(0, record.publishes - 1))
    if now - max(record.published_at, record.due_at) < pause_s:
        return False
    return starved or record.order < ledger.claimed_order(record.queue, record.priority)
