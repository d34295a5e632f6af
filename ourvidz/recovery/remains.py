"""Removing what stays in the ledger when a record expires by itself, without a purge."""

from __future__ import annotations

from collections.abc import Callable

from ourvidz.ledger.store import Ledger
from ourvidz.recovery.inspection import BATCH, batches, check_events, check_user_index

DROP_BATCH = 500
"""Ids that one script looks up."""


def remove_remains(ledger: Ledger, checkpoint: Callable[[], None] = lambda: None) -> int:
    """Remove the places of expired records in `index:all` and in their users' indexes, and their dead
    letters. Returns how many. `checkpoint` is called in between."""
    removed = 0
    for job_ids in batches(ledger.index_members("index:all"), DROP_BATCH):
        checkpoint()
        removed += ledger.drop_absent("index:all", job_ids)
    for user in ledger.indexed_users():
        checkpoint()
        removed += sum(finding.mended for finding in check_user_index(ledger, user, repair=True))
    for event_ids in batches(ledger.index_members("letters:dead"), BATCH):
        checkpoint()
        removed += sum(finding.code == "orphan" for finding in check_events(ledger, event_ids, repair=True))
    return removed
