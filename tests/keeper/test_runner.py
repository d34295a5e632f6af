"""The timers of the duties, on a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ourvidz.errors import WorkerUnavailable
from ourvidz.keeper.duties import Duty
from ourvidz.keeper.lease import DutyLease
from ourvidz.keeper.runner import DutyRunner
from ourvidz.ledger.store import Ledger

DEADLINE_S = 10.0
INTERVAL_S = 0.02
LEASE_S = 30.0
"""Longer than a busy machine keeps a thread waiting: nothing is taken over by mistake."""
SHORT_LEASE_S = 0.3


class Counter:
    """A duty that counts its runs; `on_run` is called in each."""

    def __init__(self, on_run: Callable[[], None] = lambda: None) -> None:
        self.runs = 0
        self._on_run = on_run
        self._changed = threading.Condition()

    def __call__(self, lease: DutyLease) -> None:
        with self._changed:
            self.runs += 1
            self._changed.notify_all()
        self._on_run()

    def wait_for(self, runs: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.runs >= runs, DEADLINE_S), f"only {self.runs} runs"


@contextmanager
def running(
    ledger: Ledger, lease_s: float = LEASE_S, **runs: Callable[[DutyLease], None]
) -> Iterator[DutyRunner]:
    runner = DutyRunner(ledger, [Duty(name, INTERVAL_S, run) for name, run in runs.items()], lease_s=lease_s)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop(timeout_s=DEADLINE_S)


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> Ledger:
    return make_ledger()


def test_a_duty_is_repeated(ledger: Ledger) -> None:
    """Without any message: there is none that could expire, get lost or pile up."""
    sweep = Counter()
    with running(ledger, sweep=sweep):
        sweep.wait_for(5)


def test_several_keepers_do_the_work_of_one(ledger: Ledger) -> None:
    """The second one is there for the case that the first dies."""
    first, second = Counter(), Counter()
    with running(ledger, sweep=first):
        first.wait_for(1)
        with running(ledger, sweep=second):
            first.wait_for(20)
            assert second.runs == 0
    assert second.runs == 0


def test_the_duties_of_a_stopped_keeper_go_on_at_once_on_another(ledger: Ledger) -> None:
    """A deploy of the active keeper costs no lease."""
    first, second = Counter(), Counter()
    with ExitStack() as active:
        active.enter_context(running(ledger, sweep=first))
        first.wait_for(1)
        with running(ledger, sweep=second):
            active.close()
            second.wait_for(2)


def test_a_duty_that_hangs_is_taken_over_and_delays_no_other(ledger: Ledger) -> None:
    """It does not renew its lease; the other duties have threads of their own."""
    hangs = threading.Event()
    stuck, other, second = Counter(lambda: hangs.wait(DEADLINE_S) and None), Counter(), Counter()
    try:
        with running(ledger, SHORT_LEASE_S, sweep=stuck, lists=other):
            stuck.wait_for(1)
            with running(ledger, SHORT_LEASE_S, sweep=second):
                second.wait_for(1)
                before = other.runs
                other.wait_for(before + 3)
                assert stuck.runs == 1
                hangs.set()
    finally:
        hangs.set()


@pytest.mark.parametrize("error", [ValueError("a mistake"), WorkerUnavailable("away")])
def test_a_duty_that_fails_is_repeated(ledger: Ledger, error: Exception) -> None:
    """A mistake in one of them, or an outage, must not end it for good."""

    def fail() -> None:
        raise error

    failing = Counter(fail)
    with running(ledger, sweep=failing):
        failing.wait_for(3)
