"""Attempts whose work is done while the ledger is away: it is committed when the ledger is back."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ourvidz.embedded_redis import PrivateServer
from ourvidz.errors import OutOfMemory, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Record
from ourvidz.recovery.sweep import SweepOptions, sweep
from ourvidz.tasks.attempt import Attempt
from ourvidz.testing import Eager
from ourvidz.wiring import control
from ourvidz.workflows.run import FenceLost
from tests.factories import image_job

LEASE_S = 0.9
OPTIONS = SweepOptions(
    interval_s=0.1, lease_s=LEASE_S, empty_s=15, unclaimed_s=86400, retention_s=86400, enhance_within_s=60
)
DONE = Outcome(status="completed")


class NoBroker:
    """A broker that takes every message."""

    def publish(self, record: Record) -> bool:
        return True

    def wake(self, queue: str) -> None:
        """Nobody sleeps."""

    def waiting_messages(self, queue: str) -> int:
        return 1


@pytest.fixture
def server(start_redis: Callable[..., PrivateServer]) -> PrivateServer:
    return start_redis("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def ledger(ourvidz_eager: Eager, server: PrivateServer) -> Iterator[Ledger]:
    """The ledger of this process, on a server of its own, with short leases; it is swept all the time."""
    ledger, stopped = Ledger(server.url), threading.Event()
    settings = ourvidz_eager.control.settings.model_copy(update={"lease_s": LEASE_S})

    def keep_sweeping() -> None:
        while not stopped.wait(OPTIONS.interval_s):
            try:
                sweep(ledger, NoBroker(), OPTIONS)
            except WorkerUnavailable:
                continue

    keeper = threading.Thread(target=keep_sweeping)
    with control.using(replace(ourvidz_eager.control, ledger=ledger, settings=settings)):
        keeper.start()
        yield ledger
        stopped.set()
        keeper.join()
    ledger.close()


def claimed(ledger: Ledger, token: str = "t") -> Claim:
    ledger.register(image_job("a", user_id="u"), priority=6)
    claim = ledger.claim("a", 1, worker_id="w", lease_s=LEASE_S, token=token)
    assert claim is not None
    return claim


def record(ledger: Ledger) -> Record:
    record = ledger.get("a")
    assert record is not None
    return record


@contextmanager
def frozen(server: PrivateServer) -> Iterator[None]:
    server.signal(signal.SIGSTOP)
    yield
    server.signal(signal.SIGCONT)


@contextmanager
def down(server: PrivateServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@pytest.mark.system
@pytest.mark.parametrize("away", [frozen, down])
@pytest.mark.parametrize("begun", ["before", "meanwhile"])
def test_work_done_while_the_server_is_away_longer_than_a_lease_is_committed(
    ledger: Ledger, server: PrivateServer, away: Callable[..., Any], begun: str
) -> None:
    """Whether its commit begins during the outage or after it: no attempt is made again or charged."""
    attempt = Attempt(claimed(ledger), "sdxl")
    with attempt.running():
        with away(server):
            commit = threading.Thread(target=attempt.commit, args=(DONE,))
            if begun == "meanwhile":
                commit.start()
            time.sleep(3 * LEASE_S)  # the outage itself
        if begun == "before":
            commit.start()
        commit.join(30)
    ended = record(ledger)
    assert (ended.status, ended.attempt, ended.failures) == ("completed", 1, {})


@pytest.mark.system
def test_a_worker_that_died_during_an_outage_loses_its_job_after_it(
    ledger: Ledger, server: PrivateServer
) -> None:
    """One lease after the server is back."""
    claimed(ledger)
    with down(server):
        time.sleep(2 * LEASE_S)  # the outage itself
    deadline = time.monotonic() + 20
    while record(ledger).status != "queued":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert record(ledger).failures == {"WORKER_LOST": 1}


class Outage:
    """Replaces a verb of the ledger: it fails so many times, by the clock for half a minute each."""

    def __init__(self, verb: Callable[..., Any], times: int, *, executed: bool = False) -> None:
        self._verb = verb
        self.left = times
        self._executed = executed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.left == 0:
            return self._verb(*args, **kwargs)
        self.left -= 1
        if self._executed:
            self._verb(*args, **kwargs)
        raise WorkerUnavailable("the job store cannot be reached")


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the clock is half a minute later, and no pause takes time."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 30
        return now[0]

    fake = SimpleNamespace(monotonic=monotonic, sleep=lambda seconds: None)
    monkeypatch.setattr("ourvidz.tasks.attempt.time", fake)


@pytest.mark.usefixtures("long_waits")
@pytest.mark.parametrize("executed", [False, True])
def test_a_commit_is_tried_until_the_ledger_answers(ourvidz_eager: Eager, executed: bool) -> None:
    """Also when an earlier try was carried out and its reply was lost."""
    ledger = ourvidz_eager.control.ledger
    attempt = Attempt(claimed(ledger), "sdxl")
    ledger.end = Outage(ledger.end, 100, executed=executed)  # type: ignore[method-assign]
    attempt.commit(DONE)
    assert record(ledger).status == "completed"


@pytest.mark.usefixtures("long_waits")
@pytest.mark.parametrize("executed", [False, True])
def test_a_release_is_tried_until_the_ledger_answers(ourvidz_eager: Eager, executed: bool) -> None:
    """A failed attempt is given back with its own error, and is charged once."""
    ledger = ourvidz_eager.control.ledger
    attempt = Attempt(claimed(ledger), "sdxl")
    ledger.release = Outage(ledger.release, 100, executed=executed)  # type: ignore[method-assign]
    assert attempt.end_with_error(OutOfMemory("no room"), retry_delay_s=0) == "retry"
    assert (record(ledger).status, record(ledger).failures) == ("queued", {"OOM_ERROR": 1})


@pytest.mark.usefixtures("long_waits")
def test_a_commit_after_another_claim_is_given_up(ourvidz_eager: Eager) -> None:
    """The worker was cut off alone: the others went on."""
    ledger = ourvidz_eager.control.ledger
    claim = claimed(ledger)
    ledger.end = Outage(ledger.end, 10)  # type: ignore[method-assign]
    assert ledger.rescue(claim)
    claimed(ledger, token="second")
    with pytest.raises(FenceLost):
        Attempt(claim, "sdxl").commit(DONE)
    assert record(ledger).status == "processing"
