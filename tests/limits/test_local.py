"""Allowances of plain requests: units are drawn in advance, and never more than there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from ourvidz.errors import RateLimited, WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.limits import local
from ourvidz.limits.local import LocalAllowances
from ourvidz.records.allowances import Charge, Draw, Standing


class CountingStore:
    """The ledger, or another store, with a count of the draws."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger
        self.draws = 0

    def draw_allowance(self, charge: Charge) -> Draw:
        """Draw from the ledger; without one, nothing answers."""
        self.draws += 1
        if self._ledger is None:
            raise WorkerUnavailable("away")
        return self._ledger.draw_allowance(charge)


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine in the one event loop of the test."""
    with asyncio.Runner() as runner:
        yield runner.run


def requests(quota: float = 1000, window_s: float = 100, subject: str = "edge") -> Charge:
    return Charge("read-key", subject, quota, window_s, 1)


async def admitted(allowances: LocalAllowances, charge: Charge, count: int) -> int:
    """How many of `count` requests at the same time are admitted."""
    answers = await asyncio.gather(*(allowances.take(charge) for _ in range(count)), return_exceptions=True)
    assert all(isinstance(answer, Standing | RateLimited | None) for answer in answers)
    return sum(not isinstance(answer, RateLimited) for answer in answers)


def test_many_requests_need_one_round_trip(run, ledger: Ledger, clock) -> None:
    """A read must not cost a round trip more."""
    store = CountingStore(ledger)
    allowances = LocalAllowances(store, clock)
    assert run(admitted(allowances, requests(), 10)) == 10
    assert store.draws == 1
    standing = run(allowances.take(requests()))
    assert standing is not None
    assert standing.remaining == pytest.approx(989)


def test_two_processes_admit_the_quota_together_and_not_more(run, ledger: Ledger, clock) -> None:
    """Each draws from the same allowance."""
    shims = [LocalAllowances(CountingStore(ledger), clock) for _ in range(2)]
    charge = requests(quota=300)

    async def both() -> int:
        return sum(await asyncio.gather(*(admitted(each, charge, 400) for each in shims)))

    assert run(both()) == 300


def test_a_refusal_is_remembered_for_a_moment(run, ledger: Ledger, clock) -> None:
    """A flood of refused requests reaches the ledger once a second."""
    store = CountingStore(ledger)
    allowances = LocalAllowances(store, clock)
    charge = requests(quota=5, window_s=50)
    assert run(admitted(allowances, charge, 100)) == 5
    assert store.draws == 6
    with pytest.raises(RateLimited) as refused:
        run(allowances.take(charge))
    assert refused.value.retry_after_s == pytest.approx(10)
    assert refused.value.standings[0].remaining == 0
    clock.advance(10.01)
    assert run(admitted(allowances, charge, 3)) == 1


def test_drawn_units_are_given_up(run, ledger: Ledger, clock) -> None:
    """What one process drew long ago, others may have used since."""
    store = CountingStore(ledger)
    allowances = LocalAllowances(store, clock)
    run(allowances.take(requests()))
    clock.advance(10.01)
    run(allowances.take(requests()))
    assert store.draws == 2


def test_a_ledger_that_is_away_limits_nobody_and_is_asked_once_a_second(run, clock) -> None:
    """Probes and pages that need no ledger go on; each request would wait for it otherwise."""
    store = CountingStore(None)
    allowances = LocalAllowances(store, clock)
    assert run(admitted(allowances, requests(), 9)) == 9
    assert store.draws == 1


def test_the_subjects_that_are_remembered_are_bounded(run, clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a whole network of addresses must not fill the memory."""
    monkeypatch.setattr(local, "MAX_SUBJECTS", 20)
    allowances = LocalAllowances(CountingStore(None), clock)

    async def flood() -> None:
        for number in range(50):
            await allowances.take(requests(subject=str(number)))

    run(flood())
    assert len(allowances._drawn) <= 20


def test_a_refusal_that_is_over_at_once_admits_nothing_without_a_unit(run) -> None:
    """The next unit may come before the answer is read."""
    answers = [0, 0, 1, 0]

    class Refilling:
        def draw_allowance(self, charge: Charge) -> Draw:
            return Draw(answers.pop(0), 0.0, Standing(charge, 0, 1))

    assert run(LocalAllowances(Refilling()).take(requests(quota=5))) is not None
    assert answers == [0]
