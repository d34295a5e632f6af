"""Reading jobs: one at a time, and by page."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ourvidz.errors import InternalError, InvalidParameters
from ourvidz.jobs.catalog import QUEUES
from ourvidz.jobs.job import Job, load_job
from ourvidz.ledger.base import LedgerBase
from ourvidz.records.codec import load_record, pairs
from ourvidz.records.record import Page, Record

BATCH = 100
"""Records that a page reads in one round trip."""
SCAN_BATCH = 500
"""Jobs that the server looks at in one call: about a millisecond, in which it serves nobody else."""
SCAN_LIMIT = 4000
"""Jobs that are looked at for one page, as far as its filter selects few of them."""


class Queries(LedgerBase):
    """Verbs that change nothing."""

    def get(self, job_id: str) -> Record | None:
        """The record of a job, or None."""
        fields = self._connection.with_retries(
            lambda: self._connection.client.hgetall(self._keys.job(job_id))
        )
        return load_record(job_id, fields) if fields else None

    def exists(self, job_id: str) -> bool:
        """Whether there is a record of a job, of any version."""
        name = self._keys.job(job_id)
        return bool(self._connection.with_retries(lambda: self._connection.client.exists(name)))

    def job(self, job_id: str) -> Job | None:
        """The job document, or None when none is stored (any more)."""
        document = self._connection.with_retries(
            lambda: self._connection.client.get(self._keys.document(job_id))
        )
        return load_job(document) if document else None

    def records(self, job_ids: Iterable[str]) -> list[Record]:
        """The records of these jobs in this order. Jobs that are gone are left out, and records that this
        release cannot read, which may be of a newer one."""
        records = (load_readable(job_id, fields) for job_id, fields in self._read_rows(job_ids))
        return [record for record in records if record is not None]

    def _read_rows(self, job_ids: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
        """Job ids with the hashes of their records, empty where there is none."""
        ids = list(job_ids)
        rows = self._connection.read_hashes(self._keys.job(job_id) for job_id in ids)
        return list(zip(ids, rows, strict=True))

    def page(
        self,
        *,
        user_id: str | None = None,
        type: str | None = None,
        status: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Up to `limit` records, newest first, that pass the filters. `cursor` is a page's own. A page with a
        cursor may have fewer records, also none: only so many jobs are looked at for one.
        `InvalidParameters` for a cursor that no page returned."""
        below, scanned = _load_cursor(cursor), 0
        selected: list[Record] = []
        last = 0
        while scanned < SCAN_LIMIT:
            found, looked_at, end = self._search(user_id, below, type, status)
            scanned += looked_at
            rows = self._read_rows(job_id for job_id, _ in found)
            self._drop_dangling(self._keys.index(user_id), [job_id for job_id, fields in rows if not fields])
            for (job_id, fields), (_, order) in zip(rows, found, strict=True):
                record = load_readable(job_id, fields)
                if record is None or type not in (None, record.type) or status not in (None, record.status):
                    continue
                if len(selected) == limit:
                    return Page(selected, _dump_cursor(last))
                selected.append(record)
                last = order
            if end is None:
                return Page(selected, None)
            below = end
        return Page(selected, _dump_cursor(below or 0))

    def _search(
        self, user_id: str | None, below: int | None, type: str | None, status: str | None
    ) -> tuple[list[tuple[str, int]], int, int | None]:
        """Search an index in one round trip. Returns up to `BATCH` job ids with their orders, newest first,
        the number of jobs that were looked at, and the order below which to go on, None at the end."""
        name = self._keys.index(user_id).removeprefix(self._keys.prefix)
        arguments = (name, below, type, status, " ".join(QUEUES.values()), SCAN_BATCH, BATCH)
        looked_at, end, *found = self._connection.run_script("page", *arguments)
        orders = [(job_id, int(order)) for job_id, order in pairs(found).items()]
        return orders, int(looked_at), int(end) if end else None

    def _drop_dangling(self, index: str, job_ids: list[str]) -> None:
        """Remove jobs from an index whose records have expired by themselves."""
        if job_ids:
            self._connection.with_retries(lambda: self._connection.client.zrem(index, *job_ids))

    def queue_position(self, job_id: str) -> int | None:
        """The place of a job in its queue, 0 for the next to start; None when it is not queued."""
        rank = self._connection.run_script("queue_position", job_id)
        return None if rank is None else int(rank)

    def queue_depth(self, queue: str) -> int:
        """The number of queued jobs, due or not."""
        name = self._keys.queued(queue)
        return int(self._connection.with_retries(lambda: self._connection.client.zcard(name)))

    def result_of(self, result_key: str) -> str | None:
        """The id of the last job that completed with the result of this key. It may be deleted by now."""
        name = self._keys.result(result_key)
        found: str | None = self._connection.with_retries(lambda: self._connection.client.get(name))
        return found

    def counters(self) -> dict[str, int]:
        """Counters since the beginning by dotted name: `jobs.{type}.{status}`,
        `callbacks.delivered|retried|dead`, `attempts.released.{code}`, `assets.unsigned`,
        `generation_ms.{type}.sum`."""
        values = self._connection.with_retries(lambda: self._connection.client.hgetall(self._keys.counters))
        return {name: int(value) for name, value in values.items()}


def load_readable(job_id: str, fields: dict[str, str]) -> Record | None:
    """A record, or None where there is none or this release cannot read it."""
    try:
        return load_record(job_id, fields) if fields else None
    except (InternalError, KeyError, TypeError, ValueError):
        return None


def _dump_cursor(order: int) -> str:
    """The cursor of the page that begins below this order."""
    return f"r{order:x}"


def _load_cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not re.fullmatch(r"r[0-9a-f]{1,13}", cursor):
        raise InvalidParameters(
            "the cursor is not one that this list gave out",
            field="cursor",
            rule="cursor of a page",
            value=cursor,
        )
    return int(cursor[1:], 16)
