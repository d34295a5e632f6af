"""What each operation of the ledger costs beside many queued jobs: two servers, one of them almost empty, are
asked in turn, so that other load on the machine affects both alike.

The costs are processor time of the server's main thread, which is what all processes share.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from benchmarks.filling import fill, payload
from benchmarks.results import Figures
from benchmarks.scale.still_broker import StillBroker
from ourvidz.cli.console import print_note

QUEUE = "sdxl_queue"
USER = "user7"
ROUNDS = 7
FINISHED = 120
"""Jobs that have ended on both sides: a full page of each list."""
SWEEPS = 3
"""Calls of a sweep in one round, since it makes many itself."""


def measure(jobs: int, *, samples: int) -> Figures:
    """Measure with a few queued jobs and with `jobs`: microseconds of the server a call, and the ratio.

    `samples`: calls of each operation on each side in each of `ROUNDS` rounds. The ratio is the median of
    those of the rounds.
    """
    with _side() as empty, _side() as full:
        print_note(f"queueing {jobs} jobs")
        before = full.memory()
        with full.unsynchronised():
            fill(full.url, jobs, prefix="filled")
        figures: Figures = {f"{jobs} queued: server memory bytes a job": (full.memory() - before) / jobs}
        for name, (operation, calls) in _operations(samples).items():
            print_note(name)
            costs = [(empty.cost_us(operation, calls), full.cost_us(operation, calls)) for _ in range(ROUNDS)]
            figures |= {
                f"{name}: empty µs": statistics.median(few for few, _ in costs),
                f"{name}: {jobs} queued µs": statistics.median(many for _, many in costs),
                f"{name}: ratio": statistics.median(many / few for few, many in costs),
            }
    return figures


class Side:
    """One server with a ledger, and the operations on it."""

    def __init__(self, url: str) -> None:
        from ourvidz.ledger.store import Ledger

        self.url = url
        self.ledger = Ledger(url)
        self._client = redis.Redis.from_url(url)
        self._count = 0
        for _ in range(FINISHED):
            self.submit(USER)
        for _ in range(FINISHED):
            self.run_next()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self.ledger.close()

    def memory(self) -> float:
        """Bytes that the server uses."""
        return float(self._client.info("memory")["used_memory"])

    @contextmanager
    def unsynchronised(self) -> Iterator[None]:
        """Do not synchronise the server's log with the disk inside the context."""
        self._client.config_set("appendfsync", "no")
        yield
        self._client.config_set("appendfsync", "always")

    def cost_us(self, operation: Callable[[Side], Any], calls: int) -> float:
        """Microseconds of processor time of the server's main thread for one call."""
        before = self._server_us()
        for _ in range(calls):
            operation(self)
        return (self._server_us() - before) / calls

    def submit(self, user: str = "") -> None:
        """Register one more job."""
        from ourvidz.jobs.defaults import Defaults
        from ourvidz.jobs.dialects import parse

        self._count += 1
        document = payload(f"measured-{self._count}", user or f"user{self._count % 100}")
        self.ledger.register(parse(document, Defaults()), priority=6)

    def place(self) -> None:
        """Ask for the place of the job that was submitted last."""
        assert self.ledger.queue_position(f"measured-{self._count}") is not None

    def run_next(self) -> None:
        """Find the next job, claim it and end it."""
        from ourvidz.jobs.outcome import Outcome

        record = self.ledger.queued(QUEUE, limit=1)[0]
        token = f"claim-{record.job_id}"
        claim = self.ledger.claim(record.job_id, record.run, worker_id="w", lease_s=60, token=token)
        assert claim is not None
        assert self.ledger.end(claim, outcome=Outcome(status="completed"))

    def sweep(self) -> None:
        """Sweep once, with a broker that has lost nothing."""
        from ourvidz.recovery.sweep import SweepOptions, sweep

        week_s = 7 * 86400.0
        options = SweepOptions(
            interval_s=2, lease_s=10, empty_s=15, unclaimed_s=week_s, retention_s=week_s, enhance_within_s=60
        )
        sweep(self.ledger, StillBroker(), options)

    def _server_us(self) -> float:
        cpu = self._client.info("cpu")
        return 1e6 * (cpu["used_cpu_sys_main_thread"] + cpu["used_cpu_user_main_thread"])


def _operations(samples: int) -> dict[str, tuple[Callable[[Side], Any], int]]:
    """The operations and how often each is called in a round. Jobs are submitted before they are run."""
    return {
        "reference, time": (lambda side: side.ledger.now(), samples),
        "submission": (Side.submit, 2 * samples),
        "place in the queue": (Side.place, samples),
        "next job, claim and end": (Side.run_next, samples),
        "list of jobs": (lambda side: side.ledger.page(limit=50), samples),
        "list of a user's jobs": (lambda side: side.ledger.page(user_id=USER, limit=50), samples),
        "list of failed jobs": (lambda side: side.ledger.page(status="failed", limit=50), samples),
        "vitals": (lambda side: side.ledger.vitals(), samples),
        "capacity": (lambda side: side.ledger.usage(), samples),
        "sweep": (Side.sweep, SWEEPS),
    }


@contextmanager
def _side() -> Iterator[Side]:
    """A side on a server of its own: append-only file, `appendfsync always`, never rewritten meanwhile."""
    from ourvidz.embedded_redis import PrivateServer, find_server

    with tempfile.TemporaryDirectory(prefix="ourvidz-scale-") as folder:
        options = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")
        server = PrivateServer(*options, binary=find_server(None), folder=Path(folder))
        server.start()
        side = Side(server.url)
        try:
            yield side
        finally:
            side.close()
            server.kill()
