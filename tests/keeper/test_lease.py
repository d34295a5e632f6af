"""The lease of a duty: one holder at a time, on a real server, under clocks that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ourvidz.keeper.lease import DutyLease
from ourvidz.ledger.duties import LeaseLost
from ourvidz.ledger.store import Ledger
from tests.factories import ManualClock

LEASE_S = 10.0


@pytest.fixture
def clock() -> ManualClock:
    """The monotonic clock of all keepers."""
    return ManualClock(100.0)


@pytest.fixture
def server_clock(clock: ManualClock) -> ManualClock:
    """The server's clock."""
    return ManualClock()


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger], server_clock: ManualClock) -> Ledger:
    return make_ledger(clock=server_clock)


@pytest.fixture
def lease_of(ledger: Ledger, clock: ManualClock) -> Callable[[str], DutyLease]:
    """Make the view that one keeper has of the duty `sweep`."""
    return lambda holder: DutyLease(ledger, "sweep", holder=holder, lease_s=LEASE_S, clock=clock)


@pytest.fixture
def wait(clock: ManualClock, server_clock: ManualClock) -> Callable[[float], None]:
    """Let time pass here and on the server."""

    def advance(seconds: float) -> None:
        clock.advance(seconds)
        server_clock.advance(seconds)

    return advance


def test_one_keeper_holds_the_lease_and_another_waits(
    lease_of: Callable[[str], DutyLease], wait: Callable[[float], None]
) -> None:
    """However long both of them live."""
    first, second = lease_of("a"), lease_of("b")
    for _ in range(20):
        assert first.acquire()
        assert not second.acquire()
        wait(2)


def test_a_silent_holder_loses_the_lease_after_its_length(
    lease_of: Callable[[str], DutyLease], wait: Callable[[float], None]
) -> None:
    """Measured from when the waiting keeper saw the last renewal."""
    first, second = lease_of("a"), lease_of("b")
    assert first.acquire()
    waited = 0.0
    while not second.acquire():
        wait(2)
        waited += 2
    assert LEASE_S <= waited <= LEASE_S + 2
    assert not first.acquire(), "a frozen keeper that wakes up finds that it has lost the lease"


@pytest.mark.parametrize("step_s", [-600, 600])
def test_a_step_of_the_servers_clock_neither_prolongs_nor_ends_a_lease(
    lease_of: Callable[[str], DutyLease],
    wait: Callable[[float], None],
    server_clock: ManualClock,
    step_s: float,
) -> None:
    """After a failover to a host whose clock is ten minutes off, recovery goes on."""
    first, second = lease_of("a"), lease_of("b")
    assert first.acquire()
    assert not second.acquire()
    server_clock.advance(step_s)
    assert not second.acquire()
    wait(LEASE_S)
    assert second.acquire()


def test_a_keeper_that_was_frozen_itself_takes_nothing_from_a_live_one(
    lease_of: Callable[[str], DutyLease], wait: Callable[[float], None]
) -> None:
    """It saw no renewal because it did not look."""
    first, second = lease_of("a"), lease_of("b")
    assert first.acquire()
    assert not second.acquire()
    for _ in range(10):
        wait(2)
        assert first.acquire()
    assert not second.acquire()


def test_a_released_lease_is_free_at_once(lease_of: Callable[[str], DutyLease]) -> None:
    """A restart of the only keeper costs no lease."""
    first, second = lease_of("a"), lease_of("b")
    assert first.acquire()
    second.release()
    assert not second.acquire(), "only its holder can release it"
    first.release()
    assert second.acquire()


def test_a_long_duty_learns_between_its_steps_that_another_keeper_took_over(
    lease_of: Callable[[str], DutyLease], wait: Callable[[float], None]
) -> None:
    """It stops, so that one keeper at a time does the work."""
    first, second = lease_of("a"), lease_of("b")
    assert first.acquire()
    for _ in range(10):
        wait(3)
        first.renew()
        assert not second.acquire()
    wait(LEASE_S)
    assert second.acquire()
    with pytest.raises(LeaseLost):
        first.renew()
