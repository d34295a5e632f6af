"""The running enhancement: its lease, its cancel flag."""

from __future__ import annotations

import time
from collections.abc import Callable

from ourvidz import log
from ourvidz.errors import Cancelled, WorkerUnavailable
from ourvidz.ledger.record import Enhancement, Verdict
from ourvidz.ledger.store import Ledger
from ourvidz.workflows.run import FenceLost

HEAR_EVERY_S = 0.25
"""A token takes a fraction of this; the ledger need not hear of each."""

_log = log.get(__name__)


class LeasedEnhancement:
    """The lease on one enhancement, renewed while tokens come.

    One that runs out, as while a model is being loaded, is renewed all the same unless somebody else has
    begun in the meantime.
    """

    def __init__(
        self,
        held: Enhancement,
        ledger: Ledger,
        *,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._held = held
        self._ledger = ledger
        self._lease_s = lease_s
        self._clock = clock
        self._hear_at = clock()

    def hear(self) -> None:
        """Renew the lease if it is time to. Raises `Cancelled`, or `FenceLost` when the words are somebody
        else's to find or are not waited for any more. A ledger that is away stops nothing."""
        now = self._clock()
        if now < self._hear_at:
            return
        self._hear_at = now + min(HEAR_EVERY_S, self._lease_s / 3)
        try:
            verdict = self._ledger.renew_enhancement(self._held, lease_s=self._lease_s)
        except WorkerUnavailable:
            _log.warning("ledger_away", job_id=self._held.job_id)
            return
        if verdict is Verdict.LOST:
            raise FenceLost(self._held.job_id)
        if verdict is Verdict.CANCEL:
            raise Cancelled("the job was cancelled")
