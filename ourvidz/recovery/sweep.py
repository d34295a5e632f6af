"""The sweep: recovers jobs whose worker or message was lost.

The ledger is the truth, a message only a hint. A keeper sweeps every few seconds. Each verb that the sweep
uses is atomic and fenced, so two sweeps at the same time do no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from ourvidz import log
from ourvidz.errors import Cancelled, OurvidzError, WorkerLost, WorkerUnavailable
from ourvidz.jobs.catalog import QUEUES
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.duties import LeaseLost
from ourvidz.ledger.maintenance import LastClaims
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.recovery.quarantine import recheck_quarantined
from ourvidz.recovery.walk import Walk, walk_due, walk_expired, walk_queued

PUBLISH_GRACE_S = 2.0
"""How long a due job may be unpublished before the sweep publishes it."""
REPUBLISH_CAP_S = 300.0
"""The longest pause between two republications of one job."""
RAISE_AFTER_S = 60.0
"""How long a job waits before its priority may be raised."""
DELIVERIES_PER_SWEEP = 100
"""Due deliveries that one sweep checks: a long outage of receivers must not slow recovery down."""
URGENT = 0
ENHANCEMENT_TOO_LATE = "The enhancement of the prompt took too long: it was used as it is."

_log = log.get(__name__)


class Broker(Protocol):
    """What the sweep needs of the message broker."""

    def publish(self, record: Record) -> bool:
        """Publish the message of a job. False when the broker cannot be reached."""

    def wake(self, queue: str) -> None:
        """Ask the workers of a queue that do not drain to consume it."""

    def waiting_messages(self, queue: str) -> int:
        """The number of messages of a queue that no worker has taken."""


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Times of the sweep, in seconds.

    Between sweeps; of a lease; of an empty broker queue until its jobs count as forgotten; of the longest
    wait for a worker; of retention; of the longest wait for an enhancement.
    """

    interval_s: float
    lease_s: float
    empty_s: float
    unclaimed_s: float
    retention_s: float
    enhance_within_s: float


@dataclass(slots=True)
class SweepReport:
    """Numbers of what one sweep did.

    Jobs queued again (`recovered`), ended, republished, given a more urgent priority (`lifted`), generated
    without their enhancement (`given_up`), purged; ids without a record or in the wrong index that were
    removed from it; jobs that were set aside because they cannot be read or handled (`quarantined`), and
    those that came back (`restored`). `failed` names the phases that raised an error.
    """

    recovered: int = 0
    ended: int = 0
    republished: int = 0
    lifted: int = 0
    given_up: int = 0
    purged: int = 0
    removed: int = 0
    quarantined: int = 0
    restored: int = 0
    failed: list[str] = field(default_factory=list)


def sweep(
    ledger: Ledger,
    broker: Broker,
    options: SweepOptions,
    *,
    checkpoint: Callable[[], None] = lambda: None,
) -> SweepReport:
    """Sweep all leases, queues, deliveries and old records once.

    A phase that fails, or a record, does not stop the others. `checkpoint` is called between steps and may
    raise `LeaseLost`. Raises that, and `WorkerUnavailable` when the ledger cannot be reached.
    """
    run = _Sweep(ledger, broker, options, checkpoint)
    # Workers renew three times a lease, so a shorter silence of the server ends no lease of a live one.
    ledger.record_sweep(silence_s=max(0.6 * options.lease_s, 2 * options.interval_s), lease_s=options.lease_s)
    run.phase("leases", run.recover_expired)
    for queue in QUEUES.values():
        run.phase(queue, partial(run.sweep_queue, queue))
    run.phase("deliveries", run.check_deliveries)
    run.phase("purge", run.purge)
    run.phase("quarantine", run.recheck_quarantined)
    ledger.end_sweep(run.report.failed)
    return run.report


class _Sweep:
    """One sweep. Each phase and each record is isolated from the others."""

    def __init__(
        self, ledger: Ledger, broker: Broker, options: SweepOptions, checkpoint: Callable[[], None]
    ) -> None:
        self.report = SweepReport()
        self._ledger = ledger
        self._broker = broker
        self._options = options
        self._checkpoint = checkpoint

    def phase(self, name: str, work: Callable[[], None]) -> None:
        """Do one part of the sweep. An error in it is logged and noted in the report."""
        self._checkpoint()
        try:
            work()
        except (WorkerUnavailable, LeaseLost):
            raise
        except Exception:  # noqa: BLE001  one part that fails must not end recovery
            _log.exception("sweep_phase_failed", phase=name)
            self.report.failed.append(name)

    def recover_expired(self) -> None:
        """Take the jobs back whose lease has expired."""
        self._handle("leases", walk_expired(self._ledger), self._recover)

    def sweep_queue(self, queue: str) -> None:
        """End, republish or raise the queued jobs of one queue where that is due."""
        ledger, options = self._ledger, self._options
        paused = queue in ledger.paused_queues()
        empty_since = ledger.broker_empty_since(queue, self._broker.waiting_messages(queue) == 0)
        now = ledger.now()
        starved = empty_since is not None and now - empty_since >= options.empty_s
        # Read once, and before the records: one that is still queued then was overtaken by what is in it.
        claims = ledger.last_claims(queue)
        walk = walk_queued(ledger, queue)
        if walk.records and starved and not paused:
            # The broadcast that resumed a queue may have met a worker that was just reconnecting.
            self._broker.wake(queue)
        handle = partial(self._sweep_queued, claims=claims, now=now, starved=starved, paused=paused)
        self._handle(f"queued:{queue}", walk, handle)

    def check_deliveries(self) -> None:
        """Set jobs aside whose due event cannot be read: each delivery of it would fail."""
        due = self._ledger.due_deliveries(DELIVERIES_PER_SWEEP)
        self.report.quarantined += len(due) - len(walk_due(self._ledger, due))

    def purge(self) -> None:
        """Delete what is kept no longer."""
        self.report.purged = self._ledger.purge(older_than_s=self._options.retention_s)

    def recheck_quarantined(self) -> None:
        """Put jobs back that can be read again."""
        self.report.restored = recheck_quarantined(self._ledger)

    def _handle(self, index: str, walk: Walk, handle: Callable[[Record], None]) -> None:
        """Handle the records of a walk. One that raises an error is set aside for a minute."""
        self.report.removed += walk.removed
        self.report.quarantined += walk.quarantined
        for record in walk.records:
            self._checkpoint()
            try:
                handle(record)
            except (WorkerUnavailable, LeaseLost):
                raise
            except Exception as error:  # noqa: BLE001  one job that fails must not stop the sweep for others
                _log.exception("sweep_record_failed", job_id=record.job_id, index=index)
                reason = f"the sweep of {index} failed: {type(error).__name__}"
                self._ledger.quarantine(record.job_id, index=index, reason=reason)
                self.report.quarantined += 1

    def _recover(self, record: Record) -> None:
        result = recover(self._ledger, self._broker, record)
        self.report.ended += result == "ended"
        self.report.recovered += result == "recovered"

    def _sweep_queued(
        self, record: Record, *, claims: LastClaims, now: float, starved: bool, paused: bool
    ) -> None:
        ledger, broker, options, report = self._ledger, self._broker, self._options, self.report
        if record.cancel_requested:
            report.ended += _end(ledger, record, Cancelled("the job was cancelled"))
        elif now - record.queued_at > options.unclaimed_s:
            error = WorkerUnavailable(f"no worker took this job within {options.unclaimed_s / 3600:g} hours")
            report.ended += _end(ledger, record, error)
        elif record.enhancement == "wanted" and record.published_at is not None:
            # Its generation is published by the enhancement, so no message in this queue is missing.
            late = not paused and now - record.published_at >= options.enhance_within_s
            report.given_up += late and _skip_enhancement(ledger, broker, record)
        elif record.due_at <= now and not paused:
            raised = _raise_priority(ledger, record, claims, now)
            report.lifted += raised
            if raised or _is_forgotten(record, claims, now, starved=starved):
                report.republished += broker.publish(ledger.get(record.job_id) or record)


def recover(
    ledger: Ledger, broker: Broker, record: Record, *, worker_is_dead: bool = False
) -> Literal["ended", "recovered"] | None:
    """Take a job back from a lost worker: queue it again, or end it when no attempt is left. An attempt that
    shared a batch does not count; the job runs alone from then on.

    Nothing happens, and the answer is None, when another claim has it by now, or when the lease is alive:
    it may have been renewed since the record was read. A caller that knows that `worker_is_dead` does not
    wait for the end of the lease.
    """
    error: OurvidzError | None = None
    if record.cancel_requested:
        error = Cancelled("the job was cancelled")
    elif not record.repeatable:
        error = WorkerLost("the worker was lost in the middle of an answer that its caller was reading")
    elif record.failures.get(WorkerLost.code, 0) + 1 >= WorkerLost.attempts and not record.shared:
        error = WorkerLost(f"the worker was lost {WorkerLost.attempts} times while it ran this job")
    if error is not None:
        return "ended" if _end(ledger, record, error, if_expired=not worker_is_dead) else None
    if not ledger.rescue(record, if_expired=not worker_is_dead):
        return None
    _log.warning("worker_lost", job_id=record.job_id, worker_id=record.worker_id, attempt=record.attempt)
    queued = ledger.get(record.job_id)
    if queued is not None:
        broker.publish(queued)
    return "recovered"


def _end(ledger: Ledger, record: Record, error: OurvidzError, *, if_expired: bool = False) -> bool:
    """End a job with an error. False when its claim has changed."""
    return ledger.end(record, outcome=Outcome.failure(error), if_expired=if_expired)


def _skip_enhancement(ledger: Ledger, broker: Broker, record: Record) -> bool:
    """Publish a job without its enhancement. False when the enhancement has just ended."""
    if not ledger.skip_enhancement(record.job_id, run=record.run, reason=ENHANCEMENT_TOO_LATE):
        return False
    broker.publish(ledger.get(record.job_id) or record)
    return True


def _raise_priority(ledger: Ledger, record: Record, claims: LastClaims, now: float) -> bool:
    """Make a job urgent that more urgent ones keep overtaking. Returns whether its priority changed."""
    if record.priority == URGENT or now - record.queued_at < RAISE_AFTER_S:
        return False
    overtaken = any(claims.at(priority) > record.queued_at for priority in range(URGENT, record.priority))
    return overtaken and ledger.raise_priority(record.job_id, run=record.run, priority=URGENT)


def _is_forgotten(record: Record, claims: LastClaims, now: float, *, starved: bool) -> bool:
    """Whether the broker has most likely lost the message of a due, queued job."""
    if record.published_at is None:
        return now - max(record.queued_at, record.due_at) >= PUBLISH_GRACE_S
    pause_s = min(REPUBLISH_CAP_S, PUBLISH_GRACE_S * 2 ** max(0, record.publishes - 1))
    if now - max(record.published_at, record.due_at) < pause_s:
        return False
    return starved or record.order < claims.order(record.priority)
