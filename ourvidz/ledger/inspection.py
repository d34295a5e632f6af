"""Reading the whole ledger, to compare what is stored with itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

from redis.exceptions import ResponseError

from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.base import DELIVERED_TTL_S, STREAM_TTL_S
from ourvidz.ledger.quarantine import QuarantineOperations, UnreadableRecord, read_record

BATCH = 50
"""Jobs or events that one script checks: other clients wait meanwhile, for about two milliseconds."""
DROP_BATCH = 500
SCAN_COUNT = 1000
STATES = ("pending", "delivered", "dead")

Code = Literal[
    "dangling", "orphan", "index", "document", "lifetime", "event", "counter", "unreadable", "quarantine",
    "message",
]  # fmt: skip
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be. `subject` is a job id, an event id or the name of a queue."""

    code: Code
    subject: str
    detail: str
    mended: bool = False


class InspectionOperations(QuarantineOperations):
    """Verbs of `ourvidz ledger check`. Every job and event is checked, and mended, by one script each, so
    nothing needs to be stopped."""

    def check_keys(self, *, repair: bool) -> list[Finding]:
        """Find keys of the whole ledger that are of another type than their own. With `repair` they are
        deleted: the check of the jobs and events fills an index again."""
        types = dict.fromkeys(self._indexes() + [f"letters:{state}" for state in STATES], "zset")
        types |= {"workers": "zset", "counters": "hash", "sweep": "hash", "clock": "hash", "empty": "hash"}
        types |= {f"claimed:{queue}": "hash" for queue in QUEUES.values()} | {"quarantine_reasons": "hash"}
        types |= {"order": "string", "fence": "string", "queue_seen": "hash", "paused": "set"}
        findings = []
        for name, expected in types.items():
            detail = self._wrong_key(name, expected)
            if detail is not None:
                if repair:
                    self._call("delete", f"{self._keys.prefix}{name}")
                findings.append(Finding("unreadable", name, detail, repair))
        return findings

    def _wrong_key(self, name: str, expected: str) -> str | None:
        """What is wrong with a key of the whole ledger, None if nothing is."""
        key = f"{self._keys.prefix}{name}"
        actual = self._call("type", key)
        if actual not in ("none", expected):
            return f"a {actual} in place of a {expected}"
        if name == "clock" and not all(map(_is_number, self._call("hvals", key))):
            return "it contains no time: no operation of the ledger works"
        return None

    def _call(self, command: str, key: str) -> Any:
        """Run a plain command on a key."""
        return self._connection.with_retries(lambda: getattr(self._connection.client, command)(key))

    def _indexes(self) -> list[str]:
        """The names of the indexes that contain job ids."""
        queued = [f"queued:{queue}" for queue in QUEUES.values()]
        return ["leases", "finished", "due", "documents", "index:all", "quarantine", *queued]

    def job_ids(self) -> set[str]:
        """The ids of all jobs that anything is stored of: a record, a part of one, or a place in an index."""
        job_ids: set[str] = set()
        for kind in ("job:", "doc:", "rows:", "stream:"):
            job_ids.update(self._scan(kind))
        for index in self._indexes():
            job_ids.update(self._members(f"{self._keys.prefix}{index}"))
        return job_ids

    def event_ids(self) -> set[str]:
        """The ids of all outbox events that anything is stored of."""
        event_ids = set(self._scan("event:"))
        for state in STATES:
            event_ids.update(self._members(self._keys.events(state)))
        return event_ids

    def check_jobs(self, job_ids: Iterable[str], *, repair: bool) -> Iterator[Finding]:
        """Check jobs; with `repair`, mend what is found."""
        for batch in _batches(job_ids, BATCH):
            readable = []
            for job_id, fields in zip(batch, self._read_each(batch), strict=True):
                try:
                    if fields:
                        read_record(job_id, fields)
                    readable.append(job_id)
                except UnreadableRecord as error:
                    yield self._report_unreadable(job_id, str(error), repair=repair)
            yield from self._run_check(
                "check_jobs",
                readable,
                int(repair),
                self._options.record_ttl_s,
                int(STREAM_TTL_S),
                int(DELIVERED_TTL_S),
                " ".join(QUEUES.values()),
                repair=repair,
            )

    def check_events(self, event_ids: Iterable[str], *, repair: bool) -> Iterator[Finding]:
        """Check outbox events; with `repair`, mend what is found."""
        for batch in _batches(event_ids, BATCH):
            yield from self._run_check("check_events", batch, int(repair), repair=repair)

    def check_user_indexes(self, *, repair: bool) -> Iterator[Finding]:
        """Check the index of each user; with `repair`, remove ids without a record."""
        for user in set(self._scan("index:user:")):
            yield from self._check_user(user, repair=repair)

    def remove_remains(self, checkpoint: Callable[[], None] = lambda: None) -> int:
        """Remove what stays when a record expires by itself, without a purge: its places in `index:all` and
        in its user's index, and its dead letters. Returns how many. `checkpoint` is called in between."""
        removed = 0
        for batch in _batches(self._members(self._keys.index(None)), DROP_BATCH):
            checkpoint()
            removed += int(self._connection.run_script("drop_absent", "index:all", *batch))
        for user in set(self._scan("index:user:")):
            checkpoint()
            removed += sum(finding.mended for finding in self._check_user(user, repair=True))
        for batch in _batches(self._members(self._keys.events("dead")), BATCH):
            checkpoint()
            removed += sum(finding.code == "orphan" for finding in self.check_events(batch, repair=True))
        return removed

    def _check_user(self, user: str, *, repair: bool) -> Iterator[Finding]:
        """Check the index of one user."""
        try:
            rows = self._connection.run_script("check_user", user, int(repair))
        except ResponseError as error:
            yield Finding("unreadable", f"index:user:{user}", f"it cannot be checked: {_first_line(error)}")
            return
        for job_id, code, detail in rows:
            yield Finding(code, job_id, detail, repair)

    def _report_unreadable(self, job_id: str, reason: str, *, repair: bool) -> Finding:
        """An unreadable record; with `repair`, it is set aside. It stays a finding until it can be read."""
        if repair:
            for index in ("leases", *(f"queued:{queue}" for queue in QUEUES.values())):
                self.quarantine(job_id, index=index, reason=reason)
        return Finding("unreadable", job_id, reason)

    def _run_check(self, verb: str, ids: list[str], *args: object, repair: bool) -> Iterator[Finding]:
        """Run a check script on ids; where one raises an error, on each id alone."""
        if not ids:
            return
        try:
            rows = self._connection.run_script(verb, *args, *ids)
        except ResponseError as error:
            if len(ids) == 1:
                yield Finding("unreadable", ids[0], f"it cannot be checked: {_first_line(error)}")
                return
            for each in ids:
                yield from self._run_check(verb, [each], *args, repair=repair)
            return
        for subject, code, detail in rows:
            yield Finding(code, subject, detail, repair and code not in ("document", "quarantine"))

    def _scan(self, kind: str) -> Iterator[str]:
        """What follows `kind` in the names of keys. A name may come twice."""
        start = f"{self._keys.prefix}{kind}"
        cursor: int = 0
        while True:
            cursor, names = self._connection.with_retries(
                lambda at=cursor: self._connection.client.scan(  # type: ignore[misc]
                    at, match=f"{_escaped(start)}*", count=SCAN_COUNT
                )
            )
            yield from (name.removeprefix(start) for name in names)
            if cursor == 0:
                return

    def _members(self, name: str) -> list[str]:
        """The members of a sorted set; none of a key of another type, which `check_keys` finds."""
        try:
            return list(self._connection.with_retries(lambda: self._connection.client.zrange(name, 0, -1)))
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return []


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    values = iter(items)
    while batch := list(islice(values, size)):
        yield batch


def _escaped(text: str) -> str:
    """A text as a glob pattern that matches only it."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:60]
