"""The ledger in Redis: every verb that changes something is one script, so one round trip.

Why scripts, and which key holds what: docs/decisions/0004-ledger-in-redis.md.
"""

from __future__ import annotations

from collections.abc import Callable

from ourvidz.ledger.limits import DAY_S, Limits
from ourvidz.ledger.redis_enhancing import RedisEnhancing
from ourvidz.ledger.redis_fleet import RedisFleet
from ourvidz.ledger.redis_jobs import RedisJobs
from ourvidz.ledger.redis_keys import Keys
from ourvidz.ledger.redis_link import Link
from ourvidz.ledger.redis_outbox import RedisOutbox
from ourvidz.ledger.redis_sweeping import RedisSweeping


class RedisLedger(RedisJobs, RedisEnhancing, RedisSweeping, RedisOutbox, RedisFleet):
    """`ledger.store.Ledger` on one Redis server (or Valkey; not a cluster).

    Without `clock` the server's own time counts. A server that is away for a few seconds is ridden out;
    `step` and `ping` give up within one. Threads may share an instance.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "ourvidz:",
        clock: Callable[[], float] | None = None,
        presence_s: float = 15.0,
        retention_s: float = 7 * DAY_S,
        retry_window_s: float = DAY_S,
        document_limit: int = 64 * 1024,
    ) -> None:
        self._limits = Limits(presence_s, retention_s, retry_window_s, document_limit)
        self._keys = Keys(prefix)
        self._link = Link(url, prefix=prefix, clock=clock)

    def now(self) -> float:
        return self._link.now()

    def ping(self) -> None:
        self._link.ping()

    def close(self) -> None:
        self._link.close()
