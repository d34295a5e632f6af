"""Allowances for plain requests: a process draws units from the ledger and admits requests with them, so that
one round trip serves many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from ourvidz.errors import WorkerUnavailable
from ourvidz.records.allowances import Charge, Draw, Standing, over_quota

DRAWN_SHARE = 0.01
"""Share of a quota that is drawn at once. Of a quota below 200, each request is drawn alone."""
KEPT_SHARE = 0.1
"""Share of the window after which drawn units are given up; the ledger has more again by then."""
REFUSED_S = 1.0
"""How long a refusal of the ledger answers further requests, at most."""
AWAY_S = 5.0
"""How long a ledger that did not answer is not asked again; asking it takes up to two seconds."""
MAX_SUBJECTS = 10_000
"""Allowances that a process remembers units of."""


class AllowanceStore(Protocol):
    """Where the allowances are kept: the ledger."""

    def draw_allowance(self, charge: Charge) -> Draw:
        """Take up to `charge.cost` units, at least one. Raises `WorkerUnavailable`."""


@dataclass(slots=True)
class _Drawn:
    """Units of one allowance; times are those of the process's clock."""

    units: int = 0
    kept_until: float = 0.0
    refused_until: float = 0.0
    wait_until: float = 0.0
    standing: Standing | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LocalAllowances:
    """The units that this process has drawn, for one event loop.

    All processes together never admit more than the quota. A ledger that does not answer limits nobody: what
    needs it fails anyway.
    """

    def __init__(self, store: AllowanceStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._drawn: dict[tuple[str, str], _Drawn] = {}

    async def take(self, charge: Charge) -> Standing | None:
        """Take one unit; the standing afterwards, None while the ledger does not answer. Raises
        `RateLimited`."""
        drawn = self._of(charge)
        if not self._admit(drawn, charge):
            async with drawn.lock:
                # Another request may have drawn meanwhile, and a short refusal may be over when it is read.
                while not self._admit(drawn, charge):
                    await self._draw(drawn, charge)
        if drawn.standing is None:
            return None
        return replace(drawn.standing, remaining=drawn.standing.remaining + drawn.units)

    def _of(self, charge: Charge) -> _Drawn:
        name = (charge.policy, charge.subject)
        if name not in self._drawn and len(self._drawn) >= MAX_SUBJECTS:
            now = self._clock()
            current = {
                each: drawn
                for each, drawn in self._drawn.items()
                if drawn.lock.locked() or max(drawn.kept_until, drawn.refused_until) > now
            }
            # More subjects than that within a moment: each is drawn anew.
            self._drawn = current if len(current) < MAX_SUBJECTS else {}
        return self._drawn.setdefault(name, _Drawn())

    def _admit(self, drawn: _Drawn, charge: Charge) -> bool:
        """Whether a unit was there. Raises `RateLimited` during a refusal."""
        now = self._clock()
        if drawn.units >= 1 and now < drawn.kept_until:
            drawn.units -= 1
            return True
        if now < drawn.refused_until:
            standings = (drawn.standing,) if drawn.standing else ()
            raise over_quota(charge, max(drawn.wait_until - now, 0.001), standings)
        return False

    async def _draw(self, drawn: _Drawn, charge: Charge) -> None:
        units = max(1, int(charge.quota * DRAWN_SHARE))
        advance = replace(charge, cost=units)
        try:
            draw = await asyncio.to_thread(self._store.draw_allowance, advance)
        except WorkerUnavailable:
            drawn.units, drawn.kept_until, drawn.standing = units, self._clock() + AWAY_S, None
            return
        now = self._clock()
        drawn.units, drawn.standing = draw.units, replace(draw.standing, charge=charge)
        drawn.kept_until = now + charge.window_s * KEPT_SHARE
        if draw.units == 0:
            drawn.wait_until = now + draw.wait_s
            drawn.refused_until = now + min(draw.wait_s, REFUSED_S)
