"""Whether finished jobs are bounded by the retention time: a soak of weeks on an injected clock.

Jobs are registered, claimed, ended and their callbacks delivered by the ledger itself, and a sweep purges.
The server's memory must stop growing once the first jobs have been kept for the retention time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis

from benchmarks.filling import payload
from benchmarks.results import Figures
from ourvidz.cli.console import print_note

RETENTION_DAYS = 7
DAYS = 30
DAY_S = 86400.0
SWEEPS_A_DAY = 12


def measure(jobs_a_day: int) -> Figures:
    """Server memory, keys and jobs by day: at the end of the retention time, and `DAYS` later."""
    by_day: dict[int, dict[str, float]] = {}
    with _system() as (soak, client):
        for day in range(1, DAYS + 1):
            soak.day(day, jobs_a_day)
            by_day[day] = {
                "jobs": float(client.zcard("soak:index:all")),
                "keys": float(soak.keys(client)),
                "memory MiB": client.info("memory")["used_memory_dataset"] / (1 << 20),
            }
            print_note(
                f"day {day}: " + ", ".join(f"{name} {value:.6g}" for name, value in by_day[day].items())
            )
    settled = RETENTION_DAYS + 2
    return {
        **{f"day {day}: {name}": value for day in (1, settled, DAYS) for name, value in by_day[day].items()},
        **{
            f"ratio day {DAYS} to day {settled}: {name}": by_day[DAYS][name] / by_day[settled][name]
            for name in by_day[DAYS]
        },
    }


class Soak:
    """Days of work on a ledger whose clock is set."""

    def __init__(self, redis_url: str) -> None:
        from ourvidz.ledger.store import Ledger

        self._now = time.time()
        self.ledger = Ledger(
            redis_url, prefix="soak:", clock=lambda: self._now, retention_s=RETENTION_DAYS * DAY_S
        )

    def day(self, day: int, jobs: int) -> None:
        """Run the jobs of one day, and sweep now and then."""
        for number in range(jobs):
            self._now += DAY_S / jobs
            self._run(f"day{day}-{number}")
            if number % max(1, jobs // SWEEPS_A_DAY) == 0:
                self._purge()
        self._purge()

    def keys(self, client: redis.Redis) -> int:
        """The number of keys; without the answers of calls, which expire after two minutes of real time."""
        answers = sum(1 for _ in client.scan_iter("soak:call:*", count=10_000))
        return int(client.dbsize()) - answers  # type: ignore[arg-type]

    def _run(self, job_id: str) -> None:
        """Register, claim and end one job, and deliver its callbacks."""
        from ourvidz.jobs.defaults import Defaults
        from ourvidz.jobs.dialects import parse
        from ourvidz.jobs.outcome import Outcome

        job = parse(payload(job_id, "soak"), Defaults())
        self.ledger.register(job, priority=6)
        claim = self.ledger.claim(job_id, 1, worker_id="soak", lease_s=10, token=job_id)
        assert claim is not None
        self._deliver(job_id)
        assert self.ledger.end(claim, outcome=Outcome(status="completed"), worker_id="soak")
        self._deliver(job_id)

    def _deliver(self, job_id: str) -> None:
        while event := self.ledger.lease_event(job_id, lease_s=10, token="soak"):
            self.ledger.mark_delivered(event, status=200)

    def _purge(self) -> None:
        """Purge as sweeps do, until nothing is left to purge."""
        while self.ledger.purge(older_than_s=RETENTION_DAYS * DAY_S):
            pass


@contextmanager
def _system() -> Iterator[tuple[Soak, redis.Redis]]:
    """A soak on a server of its own, and a client of that server."""
    from ourvidz.embedded_redis import PrivateServer, find_server

    with tempfile.TemporaryDirectory(prefix="ourvidz-soak-") as folder:
        server = PrivateServer(binary=find_server(None), folder=Path(folder))
        server.start()
        soak = Soak(server.url)
        try:
            with redis.Redis.from_url(server.url, decode_responses=True) as client, closing(soak.ledger):
                yield soak, client
        finally:
            server.kill()
