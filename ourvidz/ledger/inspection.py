"""Checking what is stored: one script reads, and repairs if asked to, all that belongs to a job or event.

So what goes on meanwhile is never taken for damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from redis.exceptions import ResponseError

from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.base import DELIVERED_TTL_S, STREAM_TTL_S
from ourvidz.ledger.maintenance import PRIORITY_SCORE
from ourvidz.ledger.quarantine import QuarantineOperations
from ourvidz.records.findings import Finding
from ourvidz.records.validation import LARGEST_NUMBER, UnreadableRecord, is_count, is_number

SCAN_COUNT = 1000
STATES = ("pending", "delivered", "dead")
LATEST_S = 2**33
"""Latest time that is no damage; `scripts/lib/clock.lua` has the same."""
COUNTERS = {"order": PRIORITY_SCORE - 1, "fence": LATEST_S * 10**6}
"""The counters and the largest numbers that they may be at; `scripts/lib/counters.lua` has the same."""
NUMBERS = {"clock", "counters", "queue_seen", *(f"claimed:{queue}" for queue in QUEUES.values())}
"""Hashes all of whose fields are numbers."""


class InspectionOperations(QuarantineOperations):
    """Verbs of `ourvidz ledger check`."""

    def check_jobs(self, job_ids: Sequence[str], *, repair: bool) -> list[Finding]:
        """Check jobs in one script, for which other clients wait; with `repair`, mend what is found. Raises
        `UnreadableRecord` if one of them cannot be checked."""
        lifetimes = (self._options.record_ttl_s, int(STREAM_TTL_S), int(DELIVERED_TTL_S))
        args = (int(repair), *lifetimes, " ".join(QUEUES.values()))
        return self._run_check("check_jobs", *args, *job_ids, repair=repair)

    def check_events(self, event_ids: Sequence[str], *, repair: bool) -> list[Finding]:
        """Check outbox events as `check_jobs` checks jobs."""
        return self._run_check("check_events", int(repair), *event_ids, repair=repair)

    def check_user(self, user: str, *, repair: bool) -> list[Finding]:
        """Check the index of a user; with `repair`, remove ids without a record. Raises `UnreadableRecord` if
        it cannot be checked."""
        return self._run_check("check_user", user, int(repair), repair=repair)

    def drop_absent(self, index: str, job_ids: Sequence[str]) -> int:
        """Remove those of these jobs from an index that have no record. Returns how many."""
        return int(self._connection.run_script("drop_absent", index, *job_ids))

    def check_keys(self, *, repair: bool) -> list[Finding]:
        """Find keys of the whole ledger that are of another type than their own, or contain no numbers. With
        `repair` they are deleted, or what is no number is. The check of the jobs and events fills an index
        again; counters and the clock go on above what is stored.
        """
        types = dict.fromkeys(self._indexes() + [f"letters:{state}" for state in STATES], "zset")
        types |= {"workers": "zset", "counters": "hash", "sweep": "hash", "clock": "hash", "empty": "hash"}
        types |= {f"claimed:{queue}": "hash" for queue in QUEUES.values()} | {"quarantine_reasons": "hash"}
        types |= {"order": "string", "fence": "string", "queue_seen": "hash", "paused": "set"}
        findings = []
        for name, expected in types.items():
            detail = self._wrong_key(name, expected)
            if detail is not None:
                if repair:
                    self._mend_key(name)
                findings.append(Finding("unreadable", name, detail, repair))
        return findings

    def job_ids(self) -> set[str]:
        """The ids of all jobs that anything is stored of: a record, a part of one, or a place in an index."""
        job_ids: set[str] = set()
        for kind in ("job:", "doc:", "rows:", "stream:"):
            job_ids.update(self._scan(kind))
        for index in self._indexes():
            job_ids.update(self.index_members(index))
        return job_ids

    def event_ids(self) -> set[str]:
        """The ids of all outbox events that anything is stored of."""
        event_ids = set(self._scan("event:"))
        for state in STATES:
            event_ids.update(self.index_members(f"letters:{state}"))
        return event_ids

    def indexed_users(self) -> set[str]:
        """The users who have an index."""
        return set(self._scan("index:user:"))

    def index_members(self, index: str) -> list[str]:
        """The members of an index; none of a key of another type, which `check_keys` finds."""
        name = f"{self._keys.prefix}{index}"
        try:
            return list(self._connection.with_retries(lambda: self._connection.client.zrange(name, 0, -1)))
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return []

    def _indexes(self) -> list[str]:
        """The names of the indexes that contain job ids."""
        queued = [f"queued:{queue}" for queue in QUEUES.values()]
        return ["leases", "finished", "due", "documents", "index:all", "quarantine", *queued]

    def _run_check(self, verb: str, *args: object, repair: bool) -> list[Finding]:
        try:
            rows = self._connection.run_script(verb, *args)
        except ResponseError as error:
            raise UnreadableRecord(f"it cannot be checked: {_first_line(error)}") from None
        return [
            Finding(code, subject, detail, repair and code not in ("document", "quarantine"))
            for subject, code, detail in rows
        ]

    def _wrong_key(self, name: str, expected: str) -> str | None:
        """What is wrong with a key of the whole ledger, None if nothing is."""
        key = f"{self._keys.prefix}{name}"
        actual = self._call("type", key)
        if actual not in ("none", expected):
            return f"a {actual} in place of a {expected}"
        if name in COUNTERS:
            return (
                None
                if is_count(self._call("get", key), COUNTERS[name])
                else "it contains no number of a counter"
            )
        if name in NUMBERS and self._fields_without_number(key):
            return "some of its fields contain no numbers"
        return None

    def _mend_key(self, name: str) -> None:
        """Store a key of the whole ledger again, or delete it, or those of its fields that are no numbers."""
        key = f"{self._keys.prefix}{name}"
        if name in COUNTERS:
            self._connection.run_script("mend_counters")
            return
        if name == "clock":
            self._connection.now()
        if name in NUMBERS and self._call("type", key) == "hash":
            for field in self._fields_without_number(key):
                self._call("hdel", key, field)
        else:
            self._call("delete", key)

    def _fields_without_number(self, key: str) -> list[str]:
        """The fields of a hash of numbers that contain none."""
        largest = LATEST_S if key.endswith("clock") else LARGEST_NUMBER
        return [field for field, text in self._call("hgetall", key).items() if not is_number(text, largest)]

    def _call(self, command: str, key: str, *args: str) -> Any:
        """Run a plain command on a key."""
        return self._connection.with_retries(lambda: getattr(self._connection.client, command)(key, *args))

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


def _escaped(text: str) -> str:
    """A text as a glob pattern that matches only it."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:60]
