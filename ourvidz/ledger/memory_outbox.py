"""What callers are still to be told, kept in memory."""

from __future__ import annotations

from dataclasses import replace

from ourvidz.errors import NotFound
from ourvidz.ledger.memory_state import MemoryState, Row
from ourvidz.ledger.record import DeliveryState, OutboxEvent


class MemoryOutbox(MemoryState):
    """The outbox verbs."""

    def due(self, limit: int = 500) -> list[str]:
        with self._lock:
            waiting = {row.event.job_id for row in self._rows.values() if row.event.state == "pending"}
            heads = {job_id: self._pending(job_id)[0].due for job_id in waiting}
            now = self.now()
            ripe = [job_id for job_id, due in heads.items() if due <= now]
            ripe.sort(key=lambda job_id: (heads[job_id], job_id))
            first = int(now * 1e6) % len(ripe) if len(ripe) > limit else 0
            return (ripe[first:] + ripe[:first])[:limit]

    def head(self, job_id: str) -> OutboxEvent | None:
        with self._lock:
            rows = self._pending(job_id)
            return rows[0].event if rows else None

    def take(self, job_id: str, *, lease_s: float, token: str) -> OutboxEvent | None:
        with self._lock:
            rows, now = self._pending(job_id), self.now()
            if not rows:
                return None
            row = rows[0]
            if row.taken_by == token:
                return row.event
            if row.due > now:
                return None
            row.event = replace(row.event, deliveries=row.event.deliveries + 1)
            row.lease_until, row.taken_by = now + lease_s, token
            return row.event

    def delivered(self, event: OutboxEvent, *, status: int) -> None:
        with self._lock:
            row = self._rows.get(event.event_id)
            if row is None or row.event.state != "pending":
                return
            self._counters["callbacks.delivered"] += 1
            if row.event.terminal:
                self._settle(row, "delivered", status)
            else:
                del self._rows[event.event_id]

    def postpone(self, event: OutboxEvent, *, due_in_s: float, status: int | None, error: str) -> None:
        with self._lock:
            row = self._undecided(event)
            if row is not None:
                due_at = self.now() + due_in_s
                row.event = replace(row.event, due_at=due_at, last_status=status, last_error=error)
                row.lease_until, row.taken_by = 0.0, None
                self._counters["callbacks.retried"] += 1

    def bury(self, event: OutboxEvent, *, status: int | None, error: str) -> None:
        with self._lock:
            row = self._undecided(event)
            if row is None:
                return
            if row.event.terminal:
                self._settle(row, "dead", status)
                row.event = replace(row.event, last_error=error)
                self._counters["callbacks.dead"] += 1
            else:
                del self._rows[event.event_id]

    def _undecided(self, event: OutboxEvent) -> Row | None:
        """The row, unless it is settled or somebody else has taken it since."""
        row = self._rows.get(event.event_id)
        if row is None or row.event.state != "pending" or row.event.deliveries != event.deliveries:
            return None
        return row

    def event(self, event_id: str) -> OutboxEvent | None:
        with self._lock:
            row = self._rows.get(event_id)
            return row.event if row else None

    def letters(self, state: DeliveryState, limit: int = 100) -> list[OutboxEvent]:
        with self._lock:
            rows = [row for row in self._rows.values() if row.event.state == state]
        newest = sorted(rows, key=lambda row: (row.since, row.event.event_id), reverse=True)
        return [row.event for row in newest[:limit]]

    def replay(self, event_id: str) -> OutboxEvent:
        with self._lock:
            row = self._rows.get(event_id)
            if row is None:
                raise NotFound(f"there is no callback {event_id}")
            if row.event.state != "pending":
                now = self.now()
                going = self._pending(row.event.job_id)
                due_at = max([now, *(head.lease_until for head in going[:1])])
                row.event = replace(row.event, state="pending", due_at=due_at, deliveries=0, settled_at=None)
                row.since = now
            return row.event
