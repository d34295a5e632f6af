"""A ledger on a real server whose keys a test damages, and the sweep of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Record
from ourvidz.recovery.sweep import SweepOptions, SweepReport, sweep
from ourvidz.testing import key_prefix, redis_url
from tests.factories import ManualClock, image_job

OPTIONS = SweepOptions(
    interval_s=2, lease_s=10, empty_s=15, unclaimed_s=86400, retention_s=7 * 86400, enhance_within_s=60
)


@dataclass
class Broker:
    """Records what is published; holds one message in every queue."""

    published: list[str] = field(default_factory=list)
    fail_for: set[str] = field(default_factory=set)
    """Jobs whose messages cannot be built."""
    fail_in: set[str] = field(default_factory=set)
    """Queues whose length cannot be read."""

    def publish(self, record: Record) -> bool:
        if record.job_id in self.fail_for:
            raise KeyError(record.type)
        self.published.append(record.job_id)
        return True

    def wake(self, queue: str) -> None:
        """Nobody sleeps."""

    def waiting_messages(self, queue: str) -> int:
        if queue in self.fail_in:
            raise RuntimeError(queue)
        return 1


@dataclass
class DamagedLedger:
    """`client` and `prefix` reach the keys behind the ledger's back."""

    ledger: Ledger
    client: Any
    prefix: str
    clock: ManualClock
    broker: Broker = field(default_factory=Broker)

    def key(self, name: str) -> str:
        """The full name of a key."""
        return f"{self.prefix}{name}"

    def sweep(self, after_s: float = 2.0) -> SweepReport:
        """Sweep once, some time after the last thing that happened."""
        # A silence of the server, which lets no lease end for the length of one, and then half a minute in
        # which workers and keepers go on talking to it.
        steps = min(int(after_s / 2), 15)
        self.clock.advance(after_s - 2 * steps)
        self.ledger.now()
        for _ in range(steps):
            self.clock.advance(2)
            self.ledger.now()
        return sweep(self.ledger, self.broker, OPTIONS)

    def add(self, job_id: str, **fields: Any) -> Record:
        """Register a job."""
        return self.ledger.register(image_job(job_id, **fields), priority=6).record

    def claim(self, job_id: str) -> Claim:
        """Register a job and claim it as a worker that dies at once."""
        self.add(job_id)
        claim = self.ledger.claim(job_id, 1, worker_id="sdxl@gone", lease_s=10, token=job_id)
        assert claim is not None
        return claim

    def status(self, job_id: str) -> str:
        """The status of a job."""
        return str(self.client.hget(self.key(f"job:{job_id}"), "status"))

    def members(self, index: str) -> list[str]:
        """The ids in an index."""
        return list(self.client.zrange(self.key(index), 0, -1))


@contextmanager
def damaged_ledger() -> Iterator[DamagedLedger]:
    """A ledger under a key prefix of its own, with a clock that the test moves."""
    clock = ManualClock()
    with key_prefix() as prefix, redis.Redis.from_url(redis_url(), decode_responses=True) as client:
        ledger = Ledger(redis_url(), prefix=prefix, clock=clock)
        yield DamagedLedger(ledger, client, prefix, clock)
        ledger.close()
