"""A long job yields between two steps: to a short one of its queue, or to another worker of its GPU.

It stays claimed and keeps its lease. What it has computed is stored as a checkpoint, its pipeline is left,
and when the other job has ended it continues from there: the files have the bytes of an undisturbed run.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ourvidz import drain_notice, log
from ourvidz.claims import claim_companion
from ourvidz.errors import ReferenceFrameError
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Record
from ourvidz.workflows.run import LeasedRun
from ourvidz.workflows.services import DeviceShare, References

if TYPE_CHECKING:
    from ourvidz.references.resolve import ResolvedReference

SHARE = 0.25
"""The delay of a job, at most, as a share of the time that it takes without any."""
LOOK_S = 0.25
"""Shortest time between two reads of the queue."""
LOOK_AT = 20
"""How many queued jobs are read, in the order in which they would start."""

_log = log.get(__name__)


def passing_types(type_name: str) -> frozenset[str]:
    """The types whose jobs may run between two steps of a job of this type: those of its family that the
    catalog expects to take a quarter of its time at most. None for texts, which share a batch."""
    row = CATALOG[type_name]
    if row.family == "chat":
        return frozenset()
    family = [each for each in CATALOG.values() if each.family == row.family]
    return frozenset(each.name for each in family if each.expected_s[1] <= SHARE * row.expected_s[1])


class CachedReferences:
    """The reference images of one job, each resolved once: a download that fails the second time, or has
    other pixels, would throw away what was computed. Implements `References`."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._resolved: dict[tuple[str, str | None], ResolvedReference | ReferenceFrameError] = {}

    def resolve(self, reference: str, *, user_id: str | None) -> ResolvedReference:
        """Return the image, or raise what the first call has raised."""
        key = (reference, user_id)
        if key not in self._resolved:
            try:
                self._resolved[key] = self._references.resolve(reference, user_id=user_id)
            except ReferenceFrameError as error:
                self._resolved[key] = error
        resolved = self._resolved[key]
        if isinstance(resolved, ReferenceFrameError):
            raise resolved.with_traceback(None)
        return resolved


class Preemption:
    """When one attempt yields, and to which job.

    It does so once it has worked for `every_s` seconds since it began, or since it last did; never while its
    worker drains, and never for longer than `SHARE` of the time that it is expected to work altogether.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        device: Callable[[], DeviceShare],
        *,
        every_s: float,
        turn_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim = claim
        self._ledger = ledger
        self._device = device
        self._every_s = every_s
        self._turn_s = turn_s
        self._clock = clock
        self._run: Callable[[], LeasedRun | None] = lambda: None
        alone = claim.record.alone or bool(claim.record.failures)
        self._passing = frozenset() if alone else passing_types(claim.type)
        self._began_at: float | None = None
        self._continued_at = 0.0
        self._left_at: float | None = None
        self._next_look_at = 0.0
        self._paused_s = 0.0
        self._pauses = 0
        self._next: Record | None = None

    def watch(self, run: LeasedRun) -> None:
        """The run whose steps tell how much of the work is done."""
        # Weakly: the run's checkpoints ask this object, and a cycle would keep what the run refers to.
        self._run = weakref.ref(run)

    def is_due(self) -> bool:
        """Whether the job yields now. Called after every step."""
        now = self._clock()
        if self._began_at is None:
            self._began_at = self._continued_at = now
        if self._left_at is not None:
            self._paused_s += now - self._left_at
            self._continued_at, self._left_at = now, None
        if now < max(self._next_look_at, self._continued_at + self._every_s) or drain_notice.is_draining():
            return False
        self._next_look_at = now + LOOK_S
        work_s = self._expected_work_s(now)
        spare_s = SHARE * work_s - self._paused_s
        self._next = None
        if self._device().must_yield():
            # Also for an image: once this job leaves the device, the family waits for the others' turn.
            due = spare_s >= self._turn_s
        else:
            self._next = self._find(work_s, spare_s)
            due = self._next is not None
        if due:
            # Where the state cannot be stored, the next try comes after the interval, not at the next step.
            self._continued_at = now
        return due

    def claim_next(self) -> Claim | None:
        """Claim the job that this one yields to. None: it was claimed elsewhere, or another worker of
        the GPU is meant."""
        self._left_at = self._clock()
        self._pauses += 1
        record, self._next = self._next, None
        if record is None:
            return None
        try:
            claim = claim_companion(
                record, worker_id=self._claim.record.worker_id or "", beside=self._claim.job_id
            )
        except Exception:  # noqa: BLE001  another job's document must not end this one
            _log.exception("companion_not_claimed", job_id=self._claim.job_id)
            return None
        if claim is not None:
            _log.info("job_preempted", job_id=self._claim.job_id, by=claim.job_id)
        return claim

    def report(self, outcome: Outcome) -> Outcome:
        """The outcome with how often the job has yielded (`preemptions`), and for how many seconds
        (`preempted_s`)."""
        if not self._pauses:
            return outcome
        added: dict[str, Any] = {"preemptions": self._pauses, "preempted_s": round(self._paused_s, 3)}
        return outcome.model_copy(update={"metadata": outcome.metadata | added})

    def _expected_work_s(self, now: float) -> float:
        """How long the whole job takes at its present pace, without pauses."""
        assert self._began_at is not None
        run, worked_s = self._run(), now - self._began_at - self._paused_s
        fraction = 0.0 if run is None else run.fraction
        return worked_s / fraction if fraction > 0 else worked_s

    def _find(self, work_s: float, spare_s: float) -> Record | None:
        """The next queued job that may pass and is expected to end in time."""
        if not self._passing:
            return None
        queue, expected_s = self._claim.record.queue, CATALOG[self._claim.type].expected_s[1]
        try:
            now, waiting = self._ledger.now(), self._ledger.queued(queue, limit=LOOK_AT)
            for record in filter(lambda record: self._may_pass(record, now), waiting):
                if CATALOG[record.type].expected_s[1] / expected_s * work_s <= spare_s:
                    return None if queue in self._ledger.paused_queues() else record
        except Exception as error:  # noqa: BLE001  a queued job that cannot be read must not end this one
            _log.warning("queue_unknown", job_id=self._claim.job_id, error=type(error).__name__)
            self._continued_at = self._clock()
        return None

    def _may_pass(self, record: Record, now: float) -> bool:
        """Whether a queued job may run beside this one: a short one that is due, whose prompt is not to be
        enhanced, and which has not failed before."""
        ready = record.type in self._passing and record.due_at <= now and not record.cancel_requested
        return ready and record.enhancement != "wanted" and not record.failures and not record.alone
