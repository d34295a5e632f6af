"""Checking many jobs and events: in batches, each in one script, so nothing needs to be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.store import Ledger
from ourvidz.records.findings import Finding
from ourvidz.records.validation import UnreadableRecord

BATCH = 50
"""Jobs or events that one script checks: other clients wait meanwhile, for about two milliseconds."""


def check_jobs(ledger: Ledger, job_ids: Iterable[str], *, repair: bool) -> Iterator[Finding]:
    """Check jobs; with `repair`, mend what is found."""
    for batch in batches(job_ids, BATCH):
        readable = []
        for job_id, record in zip(batch, ledger.read_each(batch), strict=True):
            if isinstance(record, UnreadableRecord):
                yield _report_unreadable(ledger, job_id, str(record), repair=repair)
            else:
                readable.append(job_id)
        yield from _check_each(lambda ids: ledger.check_jobs(ids, repair=repair), readable)


def check_events(ledger: Ledger, event_ids: Iterable[str], *, repair: bool) -> Iterator[Finding]:
    """Check outbox events; with `repair`, mend what is found."""
    for batch in batches(event_ids, BATCH):
        yield from _check_each(lambda ids: ledger.check_events(ids, repair=repair), batch)


def check_user_indexes(ledger: Ledger, *, repair: bool) -> Iterator[Finding]:
    """Check the index of each user; with `repair`, remove ids without a record."""
    for user in ledger.indexed_users():
        yield from check_user_index(ledger, user, repair=repair)


def check_user_index(ledger: Ledger, user: str, *, repair: bool) -> list[Finding]:
    """Check the index of one user; with `repair`, remove ids without a record."""
    try:
        return ledger.check_user(user, repair=repair)
    except UnreadableRecord as error:
        return [Finding("unreadable", f"index:user:{user}", str(error))]


def batches(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the ids in lists of up to `size`."""
    values = iter(ids)
    while batch := list(islice(values, size)):
        yield batch


def _report_unreadable(ledger: Ledger, job_id: str, reason: str, *, repair: bool) -> Finding:
    """An unreadable record; with `repair`, it is set aside. It stays a finding until it can be read."""
    if repair:
        for index in ("leases", *(f"queued:{queue}" for queue in QUEUES.values())):
            ledger.quarantine(job_id, index=index, reason=reason)
    return Finding("unreadable", job_id, reason)


def _check_each(check: Callable[[list[str]], list[Finding]], ids: list[str]) -> Iterator[Finding]:
    """Check ids together; where one of them cannot be checked, each alone."""
    if not ids:
        return
    try:
        yield from check(ids)
    except UnreadableRecord as error:
        if len(ids) == 1:
            yield Finding("unreadable", ids[0], str(error))
            return
        for each in ids:
            yield from _check_each(check, [each])
