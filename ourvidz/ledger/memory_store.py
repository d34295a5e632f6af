"""The ledger in memory: for eager mode and users' own unit tests. It ends with its process."""

from __future__ import annotations

from collections.abc import Callable

from ourvidz.ledger.limits import DAY_S, Limits
from ourvidz.ledger.memory_enhancing import MemoryEnhancing
from ourvidz.ledger.memory_fleet import MemoryFleet
from ourvidz.ledger.memory_jobs import MemoryJobs
from ourvidz.ledger.memory_outbox import MemoryOutbox
from ourvidz.ledger.memory_reading import MemoryReading


class MemoryLedger(MemoryJobs, MemoryEnhancing, MemoryReading, MemoryOutbox, MemoryFleet):
    """`ledger.store.Ledger` in this process. Threads may share an instance."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] | None = None,
        presence_s: float = 15.0,
        retention_s: float = 7 * DAY_S,
        retry_window_s: float = DAY_S,
        document_limit: int = 64 * 1024,
    ) -> None:
        limits = Limits(presence_s, retention_s, retry_window_s, document_limit)
        super().__init__(clock=clock, limits=limits)

    def ping(self) -> None:
        return None

    def close(self) -> None:
        return None
