"""Who is at work, and which queues are paused, kept in memory."""

from __future__ import annotations

from ourvidz.ledger.codec import dump_worker, load_worker
from ourvidz.ledger.limits import WORKER_KEPT_S
from ourvidz.ledger.memory_state import MemoryState, Seen
from ourvidz.ledger.record import Worker


class MemoryFleet(MemoryState):
    """The fleet verbs."""

    def beat(self, worker: Worker) -> None:
        with self._lock:
            now, before = self.now(), self._seen.get(worker.id)
            self._seen[worker.id] = Seen(worker, now, draining=before is not None and before.draining)
            self._queue_seen[worker.queue] = now
            for gone in [each for each, seen in self._seen.items() if now - seen.seen_at > WORKER_KEPT_S]:
                del self._seen[gone]

    def leave(self, worker_id: str) -> None:
        with self._lock:
            if worker_id in self._seen:
                self._seen[worker_id].left = True

    def workers(self) -> list[Worker]:
        with self._lock:
            now, seen = self.now(), list(self._seen.values())
        recent = [each for each in seen if now - each.seen_at <= WORKER_KEPT_S]
        recent.sort(key=lambda each: (each.seen_at, each.worker.id))
        return [
            load_worker(
                dump_worker(each.worker),
                seen_at=each.seen_at,
                online=not each.left and now - each.seen_at <= self._limits.presence_s,
                draining=each.draining,
            )
            for each in recent
        ]

    def queue_seen_at(self, queue: str) -> float | None:
        with self._lock:
            return self._queue_seen.get(queue)

    def drain(self, worker_id: str, draining: bool) -> bool:
        with self._lock:
            seen = self._seen.get(worker_id)
            if seen is not None:
                seen.draining = draining
            return seen is not None

    def pause(self, queue: str, paused: bool) -> None:
        with self._lock:
            (self._paused.add if paused else self._paused.discard)(queue)

    def paused(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._paused)
