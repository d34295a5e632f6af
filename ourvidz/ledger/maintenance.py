"""Verbs of the sweep and of shutting workers down: lost leases, forgotten messages, retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ourvidz.ledger.base import DELIVERED_TTL_S
from ourvidz.ledger.connection import new_call_token
from ourvidz.ledger.queries import Queries, load_readable
from ourvidz.records.calls import claim_identity
from ourvidz.records.codec import pairs
from ourvidz.records.record import Claim, Record

PRIORITIES = 10
"""Priorities that a queued job can have, from 0."""
PER_PRIORITY = 50
"""Jobs of each priority that one reading of a queue returns at least: more urgent ones hide none."""
PRIORITY_SCORE = 10**12
"""Distance of two priorities in the score of a queued job; `scripts/lib/records.lua` computes the same."""


@dataclass(frozen=True, slots=True)
class LastClaims:
    """The claims from one queue up to a moment. `fields` is the hash `claimed:<queue>`."""

    fields: Mapping[str, str]

    def order(self, priority: int) -> int:
        """The highest `order` ever claimed at this priority; 0 when none was."""
        return int(self.fields.get(f"{priority}:order", 0))

    def at(self, priority: int) -> float:
        """Time of the last claim at this priority; 0 when there was none."""
        return float(self.fields.get(f"{priority}:at", 0.0))


class MaintenanceOperations(Queries):
    """Ledger operations on all jobs, regardless of their worker."""

    def record_sweep(self, *, silence_s: float, lease_s: float) -> None:
        """Note that a sweep begins now.

        When no script has run for longer than `silence_s`, or the server's clock was set, then no lease ends
        for `lease_s`: live workers could not renew theirs, and come back meanwhile.
        """
        self._connection.run_script("record_sweep", silence_s, lease_s)

    def end_sweep(self, failed: Sequence[str]) -> None:
        """Note that a sweep ended now, and which of its phases failed."""
        self._connection.run_script("end_sweep", " ".join(failed))

    def expired(self, limit: int = 200) -> list[Record]:
        """`processing` records whose lease has expired, longest ago first."""
        return self._processing(self.expired_ids(limit))

    def expired_ids(self, limit: int = 200) -> list[str]:
        """Ids in the index of leases that have expired, longest ago first."""
        return list(self._connection.run_script("expired", limit))

    def leased_by(self, worker_id: str) -> list[Record]:
        """`processing` records whose lease a worker holds, expired or not."""
        ids = self._connection.with_retries(lambda: self._connection.client.zrange(self._keys.leases, 0, -1))
        return [record for record in self._processing(ids) if record.worker_id == worker_id]

    def _processing(self, job_ids: list[str]) -> list[Record]:
        return [record for record in self.records(job_ids) if record.status == "processing"]

    def rescue(self, job: Claim | Record, *, counted: bool = True, if_expired: bool = False) -> bool:
        """Take a job back from a worker that is lost: queue it again, due now, unpublished, with a new fence.

        `counted`: failures[WORKER_LOST] + 1, and the job runs `alone` from now on; else the attempt does not
        count (attempt - 1), and neither does one that was `shared`. With `if_expired`
        only when the lease has ended by now: a renewal may have come since it was read. False also when the
        claim is another one by now or the job is not `repeatable`.
        """
        args = (*claim_identity(job), int(counted), int(if_expired), new_call_token())
        return bool(self._connection.run_script("rescue", *args))

    def queued(self, queue: str, limit: int = 200) -> list[Record]:
        """Queued records in the order in which they will start, due or not."""
        name = self._keys.queued(queue)
        ids = self._connection.with_retries(lambda: self._connection.client.zrange(name, 0, limit - 1))
        return [record for record in self.records(ids) if record.status == "queued"]

    def startable(self, queue: str, limit: int) -> list[tuple[Record, str]]:
        """The first queued jobs that may start now, in order, each with its document, '' for none."""
        rows = self._connection.run_script("startable", queue, limit)
        read = ((load_readable(job_id, pairs(fields)), document) for job_id, fields, document in rows)
        return [(record, document) for record, document in read if record is not None]

    def queued_ids(self, queue: str, limit: int = 200) -> list[str]:
        """Ids in the index of a queue: the first `limit`, and the first ones of every priority."""
        name = self._keys.queued(queue)

        def read() -> list[str]:
            pipeline = self._connection.client.pipeline(transaction=False)
            pipeline.zrange(name, 0, limit - 1)
            for priority in range(PRIORITIES):
                lowest, beyond = priority * PRIORITY_SCORE, (priority + 1) * PRIORITY_SCORE
                pipeline.zrangebyscore(name, lowest, f"({beyond}", start=0, num=PER_PRIORITY)
            return list(dict.fromkeys(job_id for ids in pipeline.execute() for job_id in ids))

        return self._connection.with_retries(read)

    def last_claims(self, queue: str) -> LastClaims:
        """What was claimed from this queue so far, by priority."""
        name = self._keys.claimed(queue)
        return LastClaims(self._connection.with_retries(lambda: self._connection.client.hgetall(name)))

    def raise_priority(self, job_id: str, *, run: int, priority: int) -> bool:
        """Give a queued job a more urgent (lower) priority, once a run; its order stays. False when it is not
        queued in this run, was raised before, or is as urgent already."""
        return bool(self._connection.run_script("raise_priority", job_id, run, priority, new_call_token()))

    def broker_empty_since(self, queue: str, empty: bool) -> float | None:
        """Note whether the broker holds no message of a queue now. Returns since when it has held none; None
        while it holds some."""
        since = self._connection.run_script("broker_empty_since", queue, int(empty))
        return float(since) if since else None

    def deletions(self, *, older_than_s: float, limit: int = 100) -> list[str]:
        """The ids of jobs whose deletion began longer ago than this and has not ended."""
        return list(self._connection.run_script("deletions", older_than_s, limit))

    def purge(self, *, older_than_s: float, limit: int = 200) -> int:
        """Delete jobs that ended longer ago than this and have no pending callback, delivered events and
        oversized documents past their time. Returns the number of jobs."""
        return int(self._connection.run_script("purge", older_than_s, limit, DELIVERED_TTL_S))
