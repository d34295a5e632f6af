"""What the ledger in memory holds, and the moves that several of its verbs share."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any, Literal

from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.limits import STREAM_ITEMS, Limits
from ourvidz.ledger.record import DeliveryState, OutboxEvent, Record, StreamItem, Worker, event_id


@dataclass(slots=True)
class Entry:
    """A record and what no reader sees of it. `place` is its line in the list of registrations."""

    record: Record
    document: str | None
    place: int
    oversized_until: float | None = None
    sequence: int = 0
    token: str | None = None
    lifted: bool = False
    items: deque[StreamItem] = field(default_factory=lambda: deque(maxlen=STREAM_ITEMS))
    items_until: float | None = None
    latest_preview: StreamItem | None = None
    enhancer: str | None = None
    enhancing_until: float = 0.0


@dataclass(slots=True)
class Row:
    """An outbox row and who is delivering it. `since` is when it came into its state."""

    event: OutboxEvent
    since: float
    lease_until: float = 0.0
    taken_by: str | None = None

    @property
    def due(self) -> float:
        """When it may be taken."""
        return max(self.event.due_at, self.lease_until)


@dataclass(slots=True)
class Seen:
    """A worker as it said, and when."""

    worker: Worker
    seen_at: float
    left: bool = False
    draining: bool = False


class MemoryState:
    """The tables, behind one lock."""

    def __init__(self, *, clock: Callable[[], float] | None, limits: Limits) -> None:
        self._lock = RLock()
        self._clock = clock or time.time
        self._limits = limits
        self._entries: dict[str, Entry] = {}
        self._rows: dict[str, Row] = {}
        self._claimed: dict[tuple[str, int], tuple[int, float]] = {}
        self._counters: Counter[str] = Counter()
        self._seen: dict[str, Seen] = {}
        self._queue_seen: dict[str, float] = {}
        self._paused: set[str] = set()
        self._empty: dict[str, float] = {}
        self._last_tick: float | None = None
        self._orders = itertools.count(1)
        self._item_numbers = itertools.count(1)

    def now(self) -> float:
        return self._clock()

    # -- jobs
    def _change(self, entry: Entry, **changes: Any) -> Record:
        entry.record = replace(entry.record, **changes)
        return entry.record

    def _held(self, job_id: str, fence: int, run: int | None = None) -> Entry | None:
        """The entry of a job that is processing under exactly this fence."""
        entry = self._entries.get(job_id)
        if entry is None or entry.record.status != "processing" or entry.record.fence != fence:
            return None
        return entry if run is None or entry.record.run == run else None

    def _in_line(self, queue: str) -> list[Record]:
        queued = (e.record for e in self._entries.values() if e.record.status == "queued")
        return sorted((r for r in queued if r.queue == queue), key=lambda r: (r.priority, r.order, r.job_id))

    def _requeue(self, entry: Entry, *, due_at: float) -> None:
        entry.token = None
        record = self._change(
            entry,
            status="queued",
            due_at=due_at,
            progress=0.0,
            fence=entry.record.fence + 1,
            worker_id=None,
            claimed_at=None,
            lease_until=None,
            stage=None,
            published_at=None,
        )
        self._state_item(entry, record.attempt)

    def _forget(self, job_id: str) -> None:
        del self._entries[job_id]
        for gone in [row.event.event_id for row in self._rows.values() if row.event.job_id == job_id]:
            del self._rows[gone]

    # -- streams
    def _item(
        self,
        entry: Entry,
        kind: Literal["state", "progress", "preview", "token", "done"],
        data: dict[str, Any],
    ) -> StreamItem:
        item = StreamItem(f"{int(self.now() * 1000)}-{next(self._item_numbers)}", kind, data)
        entry.items.append(item)
        return item

    def _state_item(self, entry: Entry, attempt: int) -> None:
        record = entry.record
        self._item(
            entry,
            "state",
            {"status": record.status, "run": record.run, "attempt": attempt, "stage": record.stage},
        )

    # -- the outbox
    def _tell(
        self, entry: Entry, kind: str, outcome: Outcome | None, metadata: dict[str, Any] | None = None
    ) -> None:
        record, now = entry.record, self.now()
        if record.quiet:
            return
        for old in self._pending(record.job_id):
            # Progress that has not gone out yet is old news once there is newer.
            if old.event.metadata and old.lease_until <= now:
                del self._rows[old.event.event_id]
        entry.sequence += 1
        row = OutboxEvent(
            event_id=event_id(record, entry.sequence),
            job_id=record.job_id,
            run=record.run,
            sequence=entry.sequence,
            kind=kind,  # type: ignore[arg-type]
            attempt=record.attempt,
            at=now,
            queued_at=record.queued_at,
            claimed_at=record.claimed_at,
            worker_id=record.worker_id,
            callback_url=record.callback_url,
            facts=record.facts,
            outcome=outcome,
            state="pending",
            due_at=now,
            deliveries=0,
            metadata=metadata or {},
        )
        self._rows[row.event_id] = Row(row, since=now)

    def _pending(self, job_id: str) -> list[Row]:
        """The rows of a job that are still to go out, in order."""
        rows = (row for row in self._rows.values() if row.event.state == "pending")
        return sorted((row for row in rows if row.event.job_id == job_id), key=lambda row: row.event.sequence)

    def _settle(self, row: Row, state: DeliveryState, status: int | None) -> None:
        now = self.now()
        row.event = replace(row.event, state=state, settled_at=now, last_status=status)
        row.since, row.lease_until, row.taken_by = now, 0.0, None
