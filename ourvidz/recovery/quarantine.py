"""Reading quarantined jobs again: a release that can read them puts them back."""

from __future__ import annotations

from ourvidz.ledger.store import Ledger
from ourvidz.records.validation import UnreadableRecord

RECHECK_S = 60.0
"""How long a quarantined job is left alone before it is read again."""
RECHECKS = 100
"""Quarantined jobs that one sweep reads again."""


def recheck_quarantined(ledger: Ledger, *, older_than_s: float = RECHECK_S) -> int:
    """Read quarantined jobs again that were last checked longer ago than this, and put those back that can be
    read now. Returns their number."""
    restored = 0
    for entry in ledger.quarantined(RECHECKS, older_than_s=older_than_s):
        try:
            restored += _restore(ledger, entry.job_id)
        except UnreadableRecord as error:
            ledger.quarantine(entry.job_id, index="quarantine", reason=str(error))
    return restored


def _restore(ledger: Ledger, job_id: str) -> bool:
    """Put a job back into the indexes. False if its record is gone. Raises `UnreadableRecord`."""
    (record,) = ledger.read_each([job_id])
    if isinstance(record, UnreadableRecord):
        raise record
    reason = ledger.unreadable_event(job_id)
    if reason is not None:
        raise UnreadableRecord(reason)
    return ledger.end_quarantine(job_id)
