"""How much of the Redis server's memory, and how many queued jobs, there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """`queued`: jobs of all queues. `unfinished`: those and the processed ones. `memory_used` counts against
    `memory_limit`, both in bytes; the limit is 0 where the server has none, or does not tell it."""

    queued: int
    unfinished: int
    memory_used: int = 0
    memory_limit: int = 0
