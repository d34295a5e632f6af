"""Walking the indexes of a sweep: what cannot be read is set aside, and ids without a record are removed.

A record that this release cannot read (of a newer version, of a job type that it does not know, damaged) is
left as it is. Its id is taken out of the index that was walked and put into quarantine: it cannot stop the
sweep or stand before other jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.records.validation import UnreadableRecord

ROUNDS = 10
"""Batches in a row, with ids in them that do not belong there, that one walk reads."""


@dataclass(slots=True)
class Walk:
    """The result of a walk: the records to handle, and the numbers of ids that were removed from the index
    and that were quarantined."""

    records: list[Record] = field(default_factory=list)
    removed: int = 0
    quarantined: int = 0


def walk_expired(ledger: Ledger) -> Walk:
    """Read the processing records whose lease has expired, longest ago first."""
    return _walk(ledger, "leases", ledger.expired_ids, "processing")


def walk_queued(ledger: Ledger, queue: str) -> Walk:
    """Read the first queued records of a queue, due or not, in the order in which they will start, and the
    first ones of every priority."""
    return _walk(ledger, f"queued:{queue}", lambda: ledger.queued_ids(queue), "queued")


def walk_due(ledger: Ledger, job_ids: Iterable[str]) -> list[str]:
    """Return those of these jobs whose next event can be read; the others are quarantined."""
    readable = []
    for job_id in job_ids:
        reason = ledger.unreadable_event(job_id)
        if reason is None:
            readable.append(job_id)
        else:
            ledger.quarantine(job_id, index="due", reason=reason)
    return readable


def _walk(ledger: Ledger, index: str, read_ids: Callable[[], list[str]], status: str) -> Walk:
    """Read batches of an index until one contains only records of this status. Ids that do not belong there
    are removed, unreadable records quarantined."""
    walk = Walk()
    for _ in range(ROUNDS):
        job_ids = read_ids()
        walk.records = []
        for job_id, record in zip(job_ids, ledger.read_each(job_ids), strict=True):
            try:
                if isinstance(record, UnreadableRecord):
                    raise record
                if record is not None and record.status == status:
                    walk.records.append(record)
                else:
                    walk.removed += ledger.reindex(job_id, index)
            except UnreadableRecord as error:
                ledger.quarantine(job_id, index=index, reason=str(error))
                walk.quarantined += 1
        if len(walk.records) == len(job_ids):
            break
    return walk
