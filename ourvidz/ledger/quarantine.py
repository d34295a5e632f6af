"""Walking the indexes of a sweep: what cannot be read is set aside, and ids without a record are removed.

A record that this release cannot read (of a newer version, of a job type that it does not know, damaged) is
left as it is. Its id is taken out of the index that was walked and put into quarantine: it cannot stop the
sweep or stand before other jobs. It is read again every minute: a release that can read it puts it back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from redis.exceptions import ResponseError

from ourvidz.errors import InternalError
from ourvidz.jobs.catalog import CATALOG
from ourvidz.ledger.maintenance import MaintenanceOperations
from ourvidz.records.codec import load_event, load_record
from ourvidz.records.record import FINISHED, Record

RECHECK_S = 60.0
"""How long a quarantined job is left alone before it is read again."""
RECHECKS = 100
"""Quarantined jobs that one sweep reads again."""
ROUNDS = 10
"""Batches in a row, with ids in them that do not belong there, that one walk reads."""
PRIORITIES = 10
"""Priorities that a queued job can have, from 0."""
PER_PRIORITY = 50
"""Jobs of each priority that one walk of a queue reads at least: more urgent ones hide none."""
PRIORITY_SCORE = 10**12
"""Distance of two priorities in the score of a queued job; `scripts/lib/records.lua` computes the same."""
LARGEST_NUMBER = 2**53
"""Largest number that a script reads exactly. One above it would break the counters of all jobs."""
STATUSES = {"queued", "processing", *FINISHED}


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A job that is set aside. `checked_at`: when it was last found unreadable (Unix seconds)."""

    job_id: str
    reason: str
    checked_at: float


@dataclass(slots=True)
class Walk:
    """The result of a walk: the records to handle, and the numbers of ids that were removed from the index
    and that were quarantined."""

    records: list[Record] = field(default_factory=list)
    removed: int = 0
    quarantined: int = 0


class UnreadableRecord(Exception):
    """A record that this release cannot handle; the message says why, without what is in it."""


def read_record(job_id: str, fields: dict[str, str] | ResponseError) -> Record:
    """Return a record that this release can handle, from its hash or the error of reading it. Raises
    `UnreadableRecord`."""
    if isinstance(fields, ResponseError):
        raise UnreadableRecord("its key holds no record")
    try:
        record = load_record(job_id, fields)
    except InternalError:
        raise UnreadableRecord(f"it has a record of version {fields['v']}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableRecord(f"its record cannot be decoded: {_brief(error)}") from None
    if record.type not in CATALOG:
        raise UnreadableRecord(f"its type {record.type!r} is unknown")
    if record.status not in STATUSES:
        raise UnreadableRecord(f"its status {record.status!r} is unknown")
    _check_numbers(record)
    return record


def _check_numbers(record: Record) -> None:
    """Raise `UnreadableRecord` for numbers that no script can order or count."""
    times = (
        record.created_at, record.queued_at, record.due_at, record.claimed_at, record.finished_at,
        record.published_at, record.lease_until, record.progress,
    )  # fmt: skip
    numbers = record.run, record.attempt, record.fence, record.priority, record.order, record.publishes
    if not all(math.isfinite(time) for time in times if time is not None):
        raise UnreadableRecord("one of its times is no number")
    if any(abs(number) > LARGEST_NUMBER for number in numbers):
        raise UnreadableRecord("one of its numbers is too large")
    if record.status == "processing" and record.lease_until is None:
        raise UnreadableRecord("it is processing without a lease")
    if record.finished and record.finished_at is None:
        raise UnreadableRecord("it has ended at no time")


def _brief(error: Exception) -> str:
    """The kind of an error, and the field that is missing, never a value: values may contain prompts."""
    return f"KeyError {error}" if isinstance(error, KeyError) else type(error).__name__


class QuarantineOperations(MaintenanceOperations):
    """Verbs of the sweep that read many records, and of the quarantine."""

    def walk_expired(self, limit: int = 200) -> Walk:
        """Processing records whose lease has expired, longest ago first."""
        return self._walk("leases", lambda: self._connection.run_script("expired", limit), "processing")

    def walk_queued(self, queue: str, limit: int = 200) -> Walk:
        """Queued records of a queue, due or not: the first `limit` in the order in which they will start, and
        the first ones of every priority."""
        name = self._keys.queued(queue)

        def read_ids() -> list[str]:
            pipeline = self._connection.client.pipeline(transaction=False)
            pipeline.zrange(name, 0, limit - 1)
            for priority in range(PRIORITIES):
                lowest, beyond = priority * PRIORITY_SCORE, (priority + 1) * PRIORITY_SCORE
                pipeline.zrangebyscore(name, lowest, f"({beyond}", start=0, num=PER_PRIORITY)
            return list(dict.fromkeys(job_id for ids in pipeline.execute() for job_id in ids))

        return self._walk(f"queued:{queue}", lambda: self._connection.with_retries(read_ids), "queued")

    def walk_due(self, job_ids: Iterable[str]) -> list[str]:
        """Those of these jobs whose next event can be read; the others are quarantined."""
        readable = []
        for job_id in job_ids:
            reason = self._unreadable_event(job_id)
            if reason is None:
                readable.append(job_id)
            else:
                self.quarantine(job_id, index="due", reason=reason)
        return readable

    def quarantine(self, job_id: str, *, index: str, reason: str) -> None:
        """Take a job out of an index, for a minute at least. `reason` is a sentence about it."""
        self._connection.run_script("quarantine", job_id, index, reason)

    def quarantined(self, limit: int = 100, *, older_than_s: float = 0.0) -> list[Quarantined]:
        """Quarantined jobs that were last checked longer ago than this, longest ago first."""
        rows = self._connection.run_script("quarantined", older_than_s, limit)
        return [Quarantined(job_id, reason, float(at)) for job_id, at, reason in rows]

    def quarantine_size(self) -> int:
        """The number of quarantined jobs."""
        name = self._keys.quarantine
        return int(self._connection.with_retries(lambda: self._connection.client.zcard(name)))

    def recheck_quarantined(self, *, older_than_s: float = RECHECK_S) -> int:
        """Read quarantined jobs again that were last checked longer ago than this, and put those back that
        can be read now. Returns their number."""
        restored = 0
        for entry in self.quarantined(RECHECKS, older_than_s=older_than_s):
            (fields,) = self._read_each([entry.job_id])
            try:
                if fields:
                    read_record(entry.job_id, fields)
                reason = self._unreadable_event(entry.job_id)
                if reason is None:
                    restored += bool(self._connection.run_script("end_quarantine", entry.job_id))
                    continue
            except UnreadableRecord as error:
                reason = str(error)
            except ResponseError:
                reason = "its place in an index cannot be written"
            self.quarantine(entry.job_id, index="quarantine", reason=reason)
        return restored

    def _walk(self, index: str, read_ids: Callable[[], list[str]], status: str) -> Walk:
        """Read batches of an index until one contains only records of this status. Ids that do not belong
        there are removed, unreadable records quarantined."""
        walk = Walk()
        for _ in range(ROUNDS):
            job_ids = read_ids()
            walk.records = []
            for job_id, fields in zip(job_ids, self._read_each(job_ids), strict=True):
                try:
                    record = read_record(job_id, fields) if fields else None
                    if record is not None and record.status == status:
                        walk.records.append(record)
                    else:
                        walk.removed += self._reindex(job_id, index)
                except UnreadableRecord as error:
                    self.quarantine(job_id, index=index, reason=str(error))
                    walk.quarantined += 1
            if len(walk.records) == len(job_ids):
                break
        return walk

    def _reindex(self, job_id: str, index: str) -> bool:
        """Correct the place of a job. Returns whether it was removed from the index. Raises
        `UnreadableRecord` if its record names no place."""
        try:
            return bool(self._connection.run_script("reindex", job_id, index))
        except ResponseError:
            raise UnreadableRecord("its place in an index cannot be written") from None

    def _read_each(self, job_ids: list[str]) -> list[dict[str, str] | ResponseError]:
        """The hashes of these records, empty where there is none; an error where the key is no hash."""

        def read() -> list[dict[str, str] | ResponseError]:
            pipeline = self._connection.client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hgetall(self._keys.job(job_id))
            answers = pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                    raise answer
            return list(answers)

        return self._connection.with_retries(read) if job_ids else []

    def _unreadable_event(self, job_id: str) -> str | None:
        """Why the next event of a job cannot be read, None when it can or there is none."""
        try:
            answer = self._connection.run_script("next_event", job_id)
        except ResponseError:
            return "its events cannot be read"
        if not answer:
            return None
        event_id, flat = answer
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            load_event(event_id, fields)
        except (KeyError, TypeError, ValueError) as error:
            return f"its event {event_id} cannot be decoded: {_brief(error)}"
        return None
