"""What erasures keep in and remove from the Redis server beside jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files

from redis.exceptions import ResponseError

from ourvidz.ledger.connection import Connection
from ourvidz.records.gpu_usage import NO_USER, day_number, today

USAGE_DAYS = 401
"""Days of GPU usage that may be stored: each is kept for 400 days."""
REWRITE_S = 60.0
"""How long one call waits for the server to write its file anew."""
POLL_S = 0.05


class ErasureStore:
    """The erasures that have begun and not ended, `{prefix}erasures`, and `{prefix}erasures:rewrite`, which
    exists while the server's file still has what was erased. Every method can be repeated."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client
        self._pending = f"{connection.prefix}erasures"
        self._rewrite_due = f"{connection.prefix}erasures:rewrite"
        script = files("ourvidz.erasure.scripts") / "anonymise_usage.lua"
        self._anonymise = self._client.register_script(script.read_text(encoding="utf-8"))

    def begin(self, user_id: str) -> None:
        """Note that a user is being erased: a keeper goes on if this process dies."""
        self._connection.with_retries(lambda: self._client.sadd(self._pending, user_id))

    def pending(self) -> list[str]:
        """The users whose erasure has begun and not ended."""
        return sorted(self._connection.with_retries(lambda: self._client.smembers(self._pending)))

    def end(self, user_id: str) -> None:
        """Note that nothing of a user is left but in the server's file."""

        def write() -> None:
            pipeline = self._client.pipeline()
            pipeline.set(self._rewrite_due, "1")
            pipeline.srem(self._pending, user_id)
            pipeline.execute()

        self._connection.with_retries(write)

    def anonymise_usage(self, user_id: str) -> int:
        """Count the GPU usage of a user as that of nobody. Returns the number of rows."""
        last = day_number(today()) + 1

        def write() -> int:
            days = range(last - USAGE_DAYS, last + 1)
            pipeline = self._client.pipeline(transaction=False)
            for day in days:
                pipeline.exists(f"{self._connection.prefix}gpu_usage:{day}")
            stored = [day for day, exists in zip(days, pipeline.execute(), strict=True) if exists]
            prefix = self._connection.prefix
            return sum(int(self._anonymise(args=(prefix, day, user_id, NO_USER))) for day in stored)

        return self._connection.with_retries(write)

    def remove_counts(self, user_id: str) -> None:
        """Remove the list of a user's waiting jobs, by which the limit of jobs counts."""
        names = [f"{self._connection.prefix}{name}:{user_id}" for name in ("waiting", "waiting_looked")]
        self._connection.with_retries(lambda: self._client.delete(*names))

    @property
    def rewrite_due(self) -> bool:
        """Whether the server's file may still have what was erased."""
        return bool(self._connection.with_retries(lambda: self._client.exists(self._rewrite_due)))

    def rewrite(self, *, timeout_s: float = REWRITE_S, beat: Callable[[], None] = lambda: None) -> bool:
        """Have the server write its file anew without what was deleted, and wait for it. False where it does
        not end in time, fails, or the server does not let its clients do so; then it stays due."""
        deadline = time.monotonic() + timeout_s
        try:
            # One that runs already has begun before the last deletion.
            if not self._await_writing(deadline, beat):
                return False
            kind = self._kind_of_file()
            if kind is not None:
                self._client.execute_command("BGREWRITEAOF" if kind == "aof" else "BGSAVE")
                if not self._await_writing(deadline, beat):
                    return False
                status = "aof_last_bgrewrite_status" if kind == "aof" else "rdb_last_bgsave_status"
                if self._client.info("persistence").get(status) != "ok":
                    return False
        except ResponseError:
            return False
        self._connection.with_retries(lambda: self._client.delete(self._rewrite_due))
        return True

    def _await_writing(self, deadline: float, beat: Callable[[], None]) -> bool:
        """Wait until the server writes no file in the background. False at the deadline."""
        names = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
        while any(int(self._client.info("persistence").get(name, 0)) for name in names):
            if time.monotonic() >= deadline:
                return False
            beat()
            time.sleep(POLL_S)
        return True

    def _kind_of_file(self) -> str | None:
        """What the server stores: `aof`, `rdb`, or None for nothing."""
        if int(self._client.info("persistence").get("aof_enabled", 0)):
            return "aof"
        return "rdb" if self._client.config_get("save").get("save") else None
