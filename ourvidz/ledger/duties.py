"""Leases of the keepers' periodic duties: each duty is performed by one keeper at a time."""

from __future__ import annotations

from dataclasses import dataclass

from ourvidz.ledger.base import LedgerBase


@dataclass(frozen=True, slots=True)
class DutyState:
    """Who holds the lease of a duty. `renewals` grows with every renewal."""

    holder: str
    renewals: int

    @property
    def version(self) -> str:
        """The lease as of its last renewal: while this does not change, nobody has renewed it."""
        return f"{self.holder}:{self.renewals}"


class LeaseLost(Exception):
    """Another keeper has taken the duty over: this one was silent for the length of the lease."""


class DutyOperations(LedgerBase):
    """Verbs of the keepers. The length of a lease is measured by whoever waits for it, on its own monotonic
    clock: clocks that are wrong or set during operation neither prolong nor shorten it."""

    def lease_duty(self, name: str, holder: str, *, lapsed: str | None = None) -> DutyState:
        """Take the lease of a duty if it is free, renew it if `holder` has it, or take it over if its
        `version` still is `lapsed`. Returns the state afterwards."""
        current, renewals = self._connection.run_script("lease_duty", name, holder, lapsed)
        return DutyState(current, int(renewals))

    def release_duty(self, name: str, holder: str) -> None:
        """Give the lease of a duty back, unless another keeper has it."""
        self._connection.run_script("release_duty", name, holder)
