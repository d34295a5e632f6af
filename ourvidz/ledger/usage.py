"""What jobs use: the Redis server's memory, places in queues, and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from redis.exceptions import ResponseError

from ourvidz.jobs.catalog import QUEUES
from ourvidz.ledger.base import LedgerBase
from ourvidz.ledger.connection import new_call_token
from ourvidz.records.allowances import Charge, Draw, dump_charge, load_draw
from ourvidz.records.usage import Usage


class UsageOperations(LedgerBase):
    """The verbs about the capacity for new jobs, and about GPU usage."""

    def add_gpu_usage(self, amounts: Mapping[str, int]) -> None:
        """Add amounts to the GPU usage of today, by the fields of `ourvidz.records.gpu_usage`."""
        parts = [part for pair in amounts.items() for part in pair]
        self._connection.run_script("add_gpu_usage", new_call_token(), *parts)

    def gpu_usage(self, days: Iterable[int]) -> list[dict[str, str]]:
        """Read the GPU usage of each day, counted from 1970, for `ourvidz.records.gpu_usage`."""
        pipeline = self._connection.quick_client.pipeline(transaction=False)
        for day in days:
            pipeline.hgetall(self._keys.gpu_usage(day))
        hashes: list[dict[str, str]] = self._connection.with_retries(pipeline.execute, quick=True)
        return hashes

    def draw_allowance(self, charge: Charge) -> Draw:
        """Take up to `charge.cost` units in advance, at least one; gives up within a second."""
        args = dump_charge(charge)
        return load_draw(charge, self._connection.run_script("draw_allowance", *args, quick=True))

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
