"""The lease of one duty, as one keeper holds it or waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ourvidz.ledger.duties import LeaseLost
from ourvidz.ledger.store import Ledger

RENEWALS_PER_LEASE = 4
"""How often a long duty renews its lease within its length."""


class Contact:
    """For how long this process has been in unbroken contact with the ledger.

    The contact is broken by a silence of more than `silence_s`, and by a step of the ledger's clock of more
    than that: both make the leases of live workers look expired.
    """

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._began_at = 0.0
        self._last: tuple[float, float] | None = None

    def note(self, local_at: float, ledger_at: float) -> None:
        """Note an answer of the ledger: the time of the local monotonic clock, and that of the ledger."""
        if self._last is None or self._is_broken(local_at - self._last[0], ledger_at - self._last[1]):
            self._began_at = local_at
        self._last = local_at, ledger_at

    @property
    def seconds(self) -> float:
        """Seconds between the first and the last answer of the unbroken contact."""
        return 0.0 if self._last is None else self._last[0] - self._began_at

    def _is_broken(self, local_s: float, ledger_s: float) -> bool:
        return local_s > self._silence_s or abs(ledger_s - local_s) > self._silence_s


class DutyLease:
    """The lease of the duty `name` for one holder.

    `lease_s`: a holder that is silent for this long loses the lease to whoever waits. It is measured on the
    waiting keeper's monotonic clock. `silence_s`: see `Contact`. Used by one thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        *,
        holder: str,
        lease_s: float,
        silence_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._holder = holder
        self._lease_s = lease_s
        self._clock = clock
        self._contact = Contact(silence_s)
        self._version: str | None = None
        self._version_seen_at = 0.0
        self._renewed_at = 0.0

    @property
    def contact_s(self) -> float:
        """For how many seconds this keeper has been in unbroken contact with the ledger."""
        return self._contact.seconds

    def acquire(self) -> bool:
        """Take, renew or take over the lease. Returns whether this keeper has it. Raises `WorkerUnavailable`
        when the ledger cannot be reached."""
        lapsed = self._clock() - self._version_seen_at >= self._lease_s
        state = self._ledger.lease_duty(self._name, self._holder, lapsed=self._version if lapsed else None)
        now = self._clock()
        self._contact.note(now, state.at)
        if state.version != self._version:
            self._version, self._version_seen_at = state.version, now
        if state.holder != self._holder:
            return False
        self._renewed_at = now
        return True

    def renew(self) -> None:
        """Renew the lease if that is due; to be called between the steps of a long duty. A duty that hangs
        does not get here, and loses its lease. Raises `LeaseLost` when another keeper has it."""
        due = self._clock() - self._renewed_at >= self._lease_s / RENEWALS_PER_LEASE
        if due and not self.acquire():
            raise LeaseLost(self._name)

    def release(self) -> None:
        """Give the lease back, if this keeper has it."""
        self._ledger.release_duty(self._name, self._holder)
