"""The lease of one duty, as one keeper holds it or waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ourvidz.ledger.duties import LeaseLost
from ourvidz.ledger.store import Ledger

RENEWALS_PER_LEASE = 4
"""How often a long duty renews its lease within its length."""


class DutyLease:
    """The lease of the duty `name` for one holder.

    `lease_s`: a holder that is silent for this long loses the lease to whoever waits. It is measured on the
    waiting keeper's monotonic clock. `beat` is called in each `renew`. Used by one thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        *,
        holder: str,
        lease_s: float,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._holder = holder
        self._lease_s = lease_s
        self._beat = beat
        self._clock = clock
        self._version: str | None = None
        self._version_seen_at = 0.0
        self._renewed_at = 0.0

    def acquire(self) -> bool:
        """Take, renew or take over the lease. Returns whether this keeper has it. Raises `WorkerUnavailable`
        when the ledger cannot be reached."""
        lapsed = self._clock() - self._version_seen_at >= self._lease_s
        state = self._ledger.lease_duty(self._name, self._holder, lapsed=self._version if lapsed else None)
        now = self._clock()
        if state.version != self._version:
            self._version, self._version_seen_at = state.version, now
        if state.holder != self._holder:
            return False
        self._renewed_at = now
        return True

    def renew(self) -> None:
        """Renew the lease if that is due; to be called between the steps of a long duty. A duty that hangs
        does not get here, and loses its lease. Raises `LeaseLost` when another keeper has it."""
        self._beat()
        due = self._clock() - self._renewed_at >= self._lease_s / RENEWALS_PER_LEASE
        if due and not self.acquire():
            raise LeaseLost(self._name)

    def release(self) -> None:
        """Give the lease back, if this keeper has it."""
        self._ledger.release_duty(self._name, self._holder)
