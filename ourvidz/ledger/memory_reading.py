"""Reading jobs back from memory, one at a time, by page, and live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ourvidz.jobs.job import Job, load_job
from ourvidz.ledger.limits import LETTER_KEPT_S
from ourvidz.ledger.memory_state import MemoryState
from ourvidz.ledger.paging import SCAN_LIMIT, checked_after, dump_cursor, load_cursor, wanted
from ourvidz.ledger.record import Page, Record, StreamItem

POLL_S = 0.02


class MemoryReading(MemoryState):
    """The verbs that change nothing, and the sweep's."""

    def get(self, job_id: str) -> Record | None:
        with self._lock:
            entry = self._entries.get(job_id)
            return entry.record if entry else None

    def job(self, job_id: str) -> Job | None:
        with self._lock:
            entry = self._entries.get(job_id)
            return load_job(entry.document) if entry and entry.document else None

    def page(
        self,
        *,
        user_id: str | None = None,
        type: str | None = None,
        status: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        below = load_cursor(cursor)
        kept: list[Record] = []
        last = 0
        with self._lock:
            entries = [e for e in self._entries.values() if user_id is None or e.record.user_id == user_id]
        newest = sorted((e for e in entries if below is None or e.place < below), key=lambda e: -e.place)
        for scanned, entry in enumerate(newest, start=1):
            if wanted(entry.record, type, status):
                if len(kept) == limit:
                    return Page(kept, dump_cursor(last))
                kept.append(entry.record)
                last = entry.place
            if scanned == SCAN_LIMIT:
                return Page(kept, dump_cursor(entry.place))
        return Page(kept, None)

    def position(self, job_id: str) -> int | None:
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or entry.record.status != "queued":
                return None
            return [record.job_id for record in self._in_line(entry.record.queue)].index(job_id)

    def depth(self, queue: str) -> int:
        with self._lock:
            return len(self._in_line(queue))

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counters)

    def stream(self, job_id: str, *, after: str = "0", limit: int = 500) -> list[StreamItem]:
        start = _rank(checked_after(after))
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or (entry.items_until is not None and self.now() >= entry.items_until):
                return []
            return [item for item in entry.items if _rank(item.id) > start][:limit]

    async def follow(self, job_id: str, *, after: str = "0") -> AsyncIterator[StreamItem]:
        last = checked_after(after)
        while True:
            with self._lock:
                record, items = self.get(job_id), self.stream(job_id, after=last)
            for item in items:
                last = item.id
                yield item
                now = self.get(job_id)
                if item.kind == "done" and (now is None or now.run == item.data["run"]):
                    return
            if not items and (record is None or record.finished):
                return
            if not items:
                await asyncio.sleep(POLL_S)

    # -- the sweep
    def tick(self) -> float | None:
        with self._lock:
            now, last = self.now(), self._last_tick
            self._last_tick = now
            return None if last is None else now - last

    def _processing(self) -> list[Record]:
        with self._lock:
            held = [e.record for e in self._entries.values() if e.record.status == "processing"]
        return sorted(held, key=lambda record: (record.lease_until or 0.0, record.job_id))

    def expired(self, limit: int = 200) -> list[Record]:
        now = self.now()
        return [record for record in self._processing() if (record.lease_until or 0.0) <= now][:limit]

    def held_by(self, worker_id: str) -> list[Record]:
        return [record for record in self._processing() if record.worker_id == worker_id]

    def rearm(self, lease_s: float) -> int:
        with self._lock:
            held = self._processing()
            for record in held:
                self._change(self._entries[record.job_id], lease_until=self.now() + lease_s)
            return len(held)

    def waiting(self, queue: str, limit: int = 200) -> list[Record]:
        with self._lock:
            return self._in_line(queue)[:limit]

    def claimed_order(self, queue: str, priority: int) -> int:
        with self._lock:
            return self._claimed.get((queue, priority), (0, 0.0))[0]

    def claimed_at(self, queue: str, priority: int) -> float:
        with self._lock:
            return self._claimed.get((queue, priority), (0, 0.0))[1]

    def empty_since(self, queue: str, empty: bool) -> float | None:
        with self._lock:
            if not empty:
                self._empty.pop(queue, None)
                return None
            return self._empty.setdefault(queue, self.now())

    def purge(self, *, older_than_s: float, limit: int = 200) -> int:
        with self._lock:
            now = self.now()
            self._drop_old(now)
            finished = [
                record
                for record in (entry.record for entry in self._entries.values())
                if record.finished_at is not None and record.finished_at <= now - older_than_s
            ]
            oldest = sorted(finished, key=lambda record: (record.finished_at or 0.0, record.job_id))
            gone = [record.job_id for record in oldest if not self._pending(record.job_id)][:limit]
            for job_id in gone:
                self._forget(job_id)
            return len(gone)

    def _drop_old(self, now: float) -> None:
        for entry in self._entries.values():
            if entry.oversized_until is not None and entry.oversized_until <= now:
                entry.document, entry.oversized_until = None, None
        old = [
            event_id
            for event_id, row in self._rows.items()
            if row.event.state == "delivered" and row.since <= now - LETTER_KEPT_S
        ]
        for event_id in old:
            del self._rows[event_id]


def _rank(item_id: str) -> tuple[int, int]:
    milliseconds, _, number = item_id.partition("-")
    return int(milliseconds), int(number or 0)
