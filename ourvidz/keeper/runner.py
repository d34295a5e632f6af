"""Runs duties on timers: one thread for each, so that a duty that hangs delays no other."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from ourvidz import log
from ourvidz.errors import WorkerUnavailable
from ourvidz.keeper.duties import Duty
from ourvidz.keeper.lease import DutyLease
from ourvidz.ledger.duties import LeaseLost
from ourvidz.ledger.store import Ledger
from ourvidz.liveness.beats import Beat

INTERVALS_PER_LEASE = 3
"""The length of a lease in intervals of the duty, at least."""
MAX_POLL_S = 5.0
"""How often a keeper looks at least at the lease of a duty, however seldom the duty is due."""

_log = log.get(__name__)


class DutyRunner:
    """Performs duties until it is stopped, each one while it holds the duty's lease.

    Any number of runners may share a ledger. `lease_s`: the time after which the duties of a runner that died
    or is frozen are taken over; at least three intervals of the duty. `beats_dir`: the folder in which each
    duty shows that it is alive.
    """

    def __init__(
        self, ledger: Ledger, duties: Iterable[Duty], *, lease_s: float, beats_dir: Path | None = None
    ) -> None:
        self._ledger = ledger
        self._lease_s = lease_s
        self._beats_dir = beats_dir
        self._holder = uuid.uuid4().hex
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(duty,), name=f"duty-{duty.name}", daemon=True)
            for duty in duties
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, timeout_s: float) -> None:
        """Let the duties that run now finish within `timeout_s` together, and give their leases back."""
        self._stopped.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _repeat(self, duty: Duty) -> None:
        poll_s = min(duty.interval_s, MAX_POLL_S)
        beat = Beat(self._beats_dir, f"duty-{duty.name}")
        lease = DutyLease(
            self._ledger,
            duty.name,
            holder=self._holder,
            lease_s=max(self._lease_s, INTERVALS_PER_LEASE * poll_s),
            beat=beat,
        )
        active = False
        next_at = time.monotonic()
        while not self._stopped.is_set():
            began_at = time.monotonic()
            beat()
            try:
                holds = lease.acquire()
                if holds != active:
                    active = holds
                    _log.info("duty_taken" if active else "duty_left", duty=duty.name)
                if active and began_at >= next_at:
                    next_at = began_at + duty.interval_s
                    duty.run(lease)
            except LeaseLost:
                active = False
                _log.warning("duty_lost", duty=duty.name)
            except WorkerUnavailable as error:
                _log.warning("duty_put_off", duty=duty.name, reason=error.message)
            except Exception:  # noqa: BLE001  a thread that ends here would end the duty for good
                _log.exception("duty_failed", duty=duty.name)
            self._stopped.wait(max(0.0, began_at + poll_s - time.monotonic()))
        self._release(lease, duty)

    def _release(self, lease: DutyLease, duty: Duty) -> None:
        try:
            lease.release()
        except WorkerUnavailable:
            _log.warning("duty_not_released", duty=duty.name)
