"""The ledger's time and its deadlines, when the clock of the server is set while jobs run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import redis

from ourvidz.embedded_redis import PrivateServer
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Record, Verdict
from ourvidz.recovery.sweep import SweepOptions, recover, sweep
from ourvidz.testing import redis_url
from tests.factories import image_job

LEASE_S = 10.0
OPTIONS = SweepOptions(
    interval_s=2, lease_s=LEASE_S, empty_s=15, unclaimed_s=86400, retention_s=7 * 86400, enhance_within_s=60
)


@dataclass
class Server:
    """A clock that shows `elapsed_s`, the time that really passed, plus an `error_s` that the test sets."""

    elapsed_s: float = 0.0
    error_s: float = 0.0

    def __call__(self) -> float:
        return 1_000_000.0 + self.elapsed_s + self.error_s


@dataclass
class Installation:
    """A ledger that is swept every two seconds of real time, and a broker that notes what is published."""

    server: Server
    ledger: Ledger
    published: list[str] = field(default_factory=list)
    live: list[Claim] = field(default_factory=list)
    """The claims whose workers renew them."""

    def publish(self, record: Record) -> bool:
        self.published.append(record.job_id)
        self.ledger.mark_published(record.job_id, record.run)
        return True

    def wake(self, queue: str) -> None:
        """Noted nowhere."""

    def waiting_messages(self, queue: str) -> int:
        return 0

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with renewals and a sweep every two seconds."""
        for _ in range(round(seconds / 2)):
            self.server.elapsed_s += 2
            for claim in self.live:
                assert self.ledger.renew(claim, lease_s=LEASE_S)
            sweep(self.ledger, self, OPTIONS)

    def seconds_until(self, happened: Callable[[], bool]) -> float:
        """How much time passes until something happens; at most 15 minutes."""
        began_s = self.server.elapsed_s
        while not happened() and self.server.elapsed_s < began_s + 900:
            self.pass_time(2)
        return self.server.elapsed_s - began_s

    def add(self, job_id: str) -> None:
        self.ledger.register(image_job(job_id), priority=6)

    def claim(self, job_id: str) -> Claim:
        claim = self.ledger.claim(job_id, 1, worker_id="w", lease_s=LEASE_S, token=f"token of {job_id}")
        assert claim is not None
        return claim

    def record(self, job_id: str) -> Record:
        record = self.ledger.get(job_id)
        assert record is not None
        return record


@pytest.fixture
def system(make_ledger: Callable[..., Ledger]) -> Installation:
    server = Server()
    installation = Installation(server, make_ledger(clock=server))
    installation.pass_time(20)
    return installation


STEPS = pytest.mark.parametrize("step_s", [-600.0, -60.0, -4.0, 0.0, 4.0, 60.0, 600.0])


@STEPS
def test_a_dead_worker_is_found_at_most_one_lease_later(system: Installation, step_s: float) -> None:
    """A clock that is set back by ten minutes must not stop recovery for ten minutes."""
    system.add("a")
    system.claim("a")
    system.server.error_s += step_s
    rescued_s = system.seconds_until(lambda: system.record("a").status == "queued")
    assert rescued_s <= (LEASE_S + 2) + LEASE_S
    assert system.record("a").failures == {"WORKER_LOST": 1}


@STEPS
def test_a_live_worker_keeps_its_job(system: Installation, step_s: float) -> None:
    """Whenever the clock is set, it has time to renew, and no attempt is charged."""
    system.add("a")
    system.live = [system.claim("a")]
    system.pass_time(4)
    record = system.record("a")
    system.server.error_s += step_s
    assert system.ledger.expired() == []
    assert recover(system.ledger, system, record) is None
    system.pass_time(40)
    assert system.ledger.step(system.live[0], progress=50) is Verdict.CONTINUE
    assert system.record("a").attempt == 1


@STEPS
def test_what_was_forgotten_is_published_and_delivered_in_time(system: Installation, step_s: float) -> None:
    """The job of a lost message, a retry and a callback wait for times that were set before the step."""
    for job_id in ("lost", "retried", "ended"):
        system.add(job_id)
        system.ledger.mark_published(job_id, 1)
    retried, ended = system.claim("retried"), system.claim("ended")
    system.ledger.release(retried, code="OOM_ERROR", due_in_s=1)
    system.ledger.end(ended, outcome=Outcome(status="completed"))
    event = system.ledger.lease_event("ended", lease_s=10, token="d")
    assert event is not None
    system.ledger.postpone(event, due_in_s=4, status=500, error="down")
    system.pass_time(2)
    system.server.error_s += step_s
    system.ledger.now()
    assert system.seconds_until(lambda: "lost" in system.published) <= 15 + LEASE_S
    assert system.seconds_until(lambda: "ended" in system.ledger.due_deliveries()) <= 4 + LEASE_S
    assert system.ledger.claim("retried", 1, worker_id="w", lease_s=LEASE_S, token="again") is not None


def test_time_never_goes_back_and_returns_to_the_clock_of_the_server(system: Installation) -> None:
    """Ages and orders stay right, and times that callers see are off for two hours at most."""
    before = system.ledger.now()
    system.server.error_s -= 600
    readings = [before, system.ledger.now()]
    for _ in range(7200):
        system.server.elapsed_s += 1
        readings.append(system.ledger.now())
    assert readings == sorted(readings)
    assert readings[101] - readings[1] == pytest.approx(90, abs=1)
    assert readings[-1] == pytest.approx(system.server(), abs=0.01)


def test_a_clock_that_began_in_1970_and_was_then_set_leaves_no_trace(system: Installation) -> None:
    """A server without a battery starts at zero until it has asked for the time."""
    system.server.error_s -= 1_000_000
    before = system.ledger.now()
    system.pass_time(10)
    assert 0 < system.ledger.now() - before < 11
    system.server.error_s += 1_000_000
    assert system.ledger.now() == pytest.approx(system.server(), abs=6)
    system.pass_time(120)
    assert system.ledger.now() == system.server()


def test_a_server_that_was_away_gives_every_worker_a_lease_to_come_back(system: Installation) -> None:
    """Also when a sweep had begun before: nobody could renew in the meantime."""
    system.add("a")
    claim = system.claim("a")
    record = system.record("a")
    system.server.elapsed_s += 150
    assert system.ledger.expired() == []
    assert recover(system.ledger, system, record) is None
    system.pass_time(8)
    assert system.ledger.end(claim, outcome=Outcome(status="completed"))


def test_a_job_that_is_not_taken_up_again_is_found_one_lease_after_an_outage(system: Installation) -> None:
    """A dead worker does not come back."""
    system.add("a")
    system.claim("a")
    system.server.elapsed_s += 150
    assert system.seconds_until(lambda: system.record("a").status == "queued") <= LEASE_S + 2


def test_the_first_script_of_an_upgraded_installation_gives_workers_time(system: Installation) -> None:
    """The former release kept no clock: how long the server was away is not known."""
    system.add("a")
    claim = system.claim("a")
    with redis.Redis.from_url(redis_url()) as client:
        client.delete(f"{system.ledger._keys.prefix}clock")
    system.server.elapsed_s += 150
    assert system.ledger.expired() == []
    assert system.ledger.renew(claim, lease_s=LEASE_S)


@pytest.mark.system
def test_a_server_that_takes_no_writes_still_tells_the_time(
    start_redis: Callable[..., PrivateServer],
) -> None:
    """A full server answers what only reads; others store the reading, else no lease would end."""
    server = start_redis("--appendonly", "no")
    ledger = Ledger(server.url)
    ledger.register(image_job("a"), priority=6)
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.delete("ourvidz:clock")
        client.config_set("maxmemory", 1)
        assert ledger.now() == pytest.approx(float(client.time()[0]), abs=5)
        assert ledger.queue_position("a") == 0
        assert client.hgetall("ourvidz:clock") == {}
        ledger.record_sweep(silence_s=6, lease_s=10)
        assert float(client.hget("ourvidz:clock", "now")) == pytest.approx(ledger.now(), abs=5)
    ledger.close()
