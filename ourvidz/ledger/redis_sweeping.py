"""What only the sweep asks of Redis."""

from __future__ import annotations

from ourvidz.ledger.limits import LETTER_KEPT_S
from ourvidz.ledger.record import Record
from ourvidz.ledger.redis_link import call_token
from ourvidz.ledger.redis_reading import RedisReading


class RedisSweeping(RedisReading):
    """Leases, queues and retention, looked at from above."""

    def tick(self) -> float | None:
        gap = self._link.call("tick", call_token())
        return float(gap) if gap else None

    def expired(self, limit: int = 200) -> list[Record]:
        return self._processing(self._link.call("ripe", "leases", limit))

    def held_by(self, worker_id: str) -> list[Record]:
        held = self._link.ask(lambda: self._link.client.zrange(self._keys.leases, 0, -1))
        return [record for record in self._processing(held) if record.worker_id == worker_id]

    def _processing(self, job_ids: list[str]) -> list[Record]:
        return [record for record in self.records(job_ids) if record.status == "processing"]

    def rearm(self, lease_s: float) -> int:
        return int(self._link.call("rearm", lease_s))

    def waiting(self, queue: str, limit: int = 200) -> list[Record]:
        name = self._keys.queued(queue)
        first = self._link.ask(lambda: self._link.client.zrange(name, 0, limit - 1))
        return [record for record in self.records(first) if record.status == "queued"]

    def claimed_order(self, queue: str, priority: int) -> int:
        return int(self._claimed(queue, f"{priority}:order") or 0)

    def claimed_at(self, queue: str, priority: int) -> float:
        return float(self._claimed(queue, f"{priority}:at") or 0.0)

    def _claimed(self, queue: str, field: str) -> str | None:
        found: str | None = self._link.ask(lambda: self._link.client.hget(self._keys.claimed(queue), field))
        return found

    def empty_since(self, queue: str, empty: bool) -> float | None:
        since = self._link.call("empty_since", queue, int(empty))
        return float(since) if since else None

    def purge(self, *, older_than_s: float, limit: int = 200) -> int:
        return int(self._link.call("purge", older_than_s, limit, LETTER_KEPT_S))
