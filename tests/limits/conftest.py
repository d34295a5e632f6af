"""Fixtures of the tests of limits: a ledger whose clock advances only when the test advances it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ourvidz.ledger.store import Ledger


class Clock:
    """A clock that advances only when the test calls it."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> Clock:
    """The clock of the ledger under test."""
    return Clock()


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger], clock: Clock) -> Ledger:
    """The ledger under test."""
    return make_ledger(clock=clock)
