"""How much of the Redis server's memory, and how many queued jobs, there are."""

from __future__ import annotations

from dataclasses import dataclass

from redis.exceptions import ResponseError

from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.base import LedgerBase


@dataclass(frozen=True, slots=True)
class Usage:
    """`queued`: jobs of all queues. `unfinished`: those and the processed ones. `memory_used` counts against
    `memory_limit`, both in bytes; the limit is 0 where the server has none, or does not tell it."""

    queued: int
    unfinished: int
    memory_used: int = 0
    memory_limit: int = 0


class UsageOperations(LedgerBase):
    """The verb that measures the capacity for new jobs."""

    def usage(self) -> Usage:
        """Read the usage; gives up within a second."""
        keys = [*(self._keys.queued(queue) for queue in QUEUES.values()), self._keys.leases]

        def read() -> list[int]:
            pipeline = self._connection.quick_client.pipeline(transaction=False)
            for key in keys:
                pipeline.zcard(key)
            counts: list[int] = pipeline.execute()
            return counts

        counts = self._connection.with_retries(read, quick=True)
        try:
            memory = self._connection.with_retries(
                lambda: self._connection.quick_client.info("memory"), quick=True
            )
        except ResponseError:
            memory = {}
        return Usage(
            queued=sum(counts[:-1]),
            unfinished=sum(counts),
            # Buffers of replicas and of the append-only file do not count against the limit.
            memory_used=int(memory.get("used_memory", 0)) - int(memory.get("mem_not_counted_for_evict", 0)),
            memory_limit=int(memory.get("maxmemory", 0)),
        )
