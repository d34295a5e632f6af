"""Who is at work, and which queues are paused, kept in Redis."""

from __future__ import annotations

from ourvidz.ledger.codec import dump_worker, load_worker, pairs
from ourvidz.ledger.limits import WORKER_KEPT_S, Limits
from ourvidz.ledger.record import Worker
from ourvidz.ledger.redis_keys import Keys
from ourvidz.ledger.redis_link import Link


class RedisFleet:
    """The fleet verbs. Draining lasts until somebody ends it, over beats and restarts alike."""

    _link: Link
    _keys: Keys
    _limits: Limits

    def beat(self, worker: Worker) -> None:
        self._link.call("beat", worker.id, worker.queue, dump_worker(worker), int(WORKER_KEPT_S))

    def leave(self, worker_id: str) -> None:
        self._link.call("leave", worker_id)

    def workers(self) -> list[Worker]:
        now, *rows = self._link.call("workers", WORKER_KEPT_S)
        return [self._worker(pairs(row), float(now)) for row in rows if row]

    def _worker(self, row: dict[str, str], now: float) -> Worker:
        seen_at = float(row["seen_at"])
        online = "left" not in row and now - seen_at <= self._limits.presence_s
        return load_worker(row["data"], seen_at=seen_at, online=online, draining="draining" in row)

    def queue_seen_at(self, queue: str) -> float | None:
        seen = self._link.ask(lambda: self._link.client.hget(self._keys.queue_seen, queue))
        return float(seen) if seen else None

    def drain(self, worker_id: str, draining: bool) -> bool:
        return bool(self._link.call("drain", worker_id, int(draining)))

    def pause(self, queue: str, paused: bool) -> None:
        client = self._link.client
        self._link.ask(lambda: (client.sadd if paused else client.srem)(self._keys.paused, queue))

    def paused(self) -> frozenset[str]:
        return frozenset(self._link.ask(lambda: self._link.client.smembers(self._keys.paused)))
