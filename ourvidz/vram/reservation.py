"""Waiting for device memory: asking the ledger again and again, and others to leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ourvidz import log
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import Answer, DeviceMemory, Part
from ourvidz.vram import owners
from ourvidz.vram.budget import Budget
from ourvidz.vram.eviction import evictions
from ourvidz.vram.leaving import is_abandoned, may_leave

POLL_S = 0.1
"""Pause between two requests of an owner that waits."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """Under what name, and with what leases and turns, one process holds memory of one device."""

    device: str
    owner: str
    family: str
    lease_s: float
    turn_s: float


class Reservations:
    """Asks for the memory of one process. `evict` lets one of its own parts leave; `is_on_device` tells
    whether a part of its own, by id, is there."""

    def __init__(
        self,
        ledger: Ledger,
        account: Account,
        budget: Budget,
        *,
        evict: Callable[[str], bool],
        is_on_device: Callable[[str], bool],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger = ledger
        self._account = account
        self._budget = budget
        self._evict = evict
        self._is_on_device = is_on_device
        self._sleep = sleep
        self._keeps_place = False
        self._waited_since: float | None = None

    @contextmanager
    def one_place(self) -> Iterator[None]:
        """The requests inside this context have one place among those who wait, that of the first."""
        self._keeps_place, self._waited_since = True, None
        try:
            yield
        finally:
            self._keeps_place, self._waited_since = False, None

    def reserve(
        self,
        parts: Sequence[Part],
        *,
        spare: Collection[str],
        waiting: Callable[[], None],
        force: bool = False,
        finished: Collection[str] = (),
        later: Collection[str] = (),
    ) -> DeviceMemory | None:
        """Wait until the memory of these parts is granted; returns what the ledger knows of the device then.
        `spare` are the ids of the parts of this process that may leave for them, `finished` those that leave
        first, `later` those that leave last.

        None: the ledger is away, and all of them are on the device. They may run: nobody else can be
        granted anything meanwhile. Raises what `waiting` raises, which is called between two requests.
        """
        asks: tuple[str, ...] = ()
        names = [part.id for part in parts]
        while True:
            try:
                answer, memory = self._ask(parts, asks, force)
            except WorkerUnavailable:
                if all(self._is_on_device(name) for name in names):
                    return None
                self._pause(waiting)
                continue
            if answer == "granted":
                return memory
            own = {each.id: each for each in memory.residents if each.owner == self._account.owner}
            if answer == "leave":
                # An eviction may have begun without this process knowing: the ledger's answer was lost.
                ending = [name for name in names if name in own and own[name].state == "evicting"]
                if not self._leave({*ending, *filter(memory.is_asked, names)}):
                    self._pause(waiting)
                continue
            plan = evictions(
                memory.residents,
                memory.missing_mib(parts, self._account.owner),
                self._budget.mib(),
                memory.now,
                keep=names,
                first=finished,
                last=later,
                force=force,
            )
            if plan.forced and not force:
                _log.warning("pinned_parts_asked", device=self._account.device, parts=plan.parts)
            # Nobody leaves in vain: other programs may hold too much for this request.
            fits = sum(part.mib for part in parts) <= self._budget.mib()
            leaving = plan.parts if fits else ()
            asks = tuple(name for name in leaving if name not in own)
            # While this process waits, nobody else here answers those who wait for its other parts.
            asked = {
                name
                for name, part in own.items()
                if name not in names and may_leave(part, memory, self._account.turn_s)
            }
            left = self._leave(asked | {name for name in leaving if name in own and name in spare})
            self._release_ended(memory)
            self._budget.measure(memory)
            if asks or not left:
                self._pause(waiting)

    def _release_ended(self, memory: DeviceMemory) -> None:
        """Release what ended processes have left behind: the driver frees their memory with them."""
        for owner in {each.owner for each in memory.residents}:
            if owners.is_visible(owner):
                is_over = owners.has_ended(owner)
            else:
                is_over = is_abandoned(owner, memory, self._budget.used_mib())
            if is_over:
                _log.warning("memory_released", device=self._account.device, owner=owner)
                with suppress(WorkerUnavailable):
                    self._ledger.release_memory(self._account.device, owner)

    def _ask(self, parts: Sequence[Part], asks: Sequence[str], force: bool) -> tuple[Answer, DeviceMemory]:
        answer, memory = self._ledger.reserve_memory(
            self._account.device,
            self._account.owner,
            parts,
            family=self._account.family,
            budget_mib=self._budget.mib(),
            lease_s=self._account.lease_s,
            turn_s=self._account.turn_s,
            asks=asks,
            force=force,
            waited_since=self._waited_since,
        )
        if self._keeps_place and self._waited_since is None:
            self._waited_since = memory.now
        return answer, memory

    def _leave(self, names: Iterable[str]) -> bool:
        """Let these parts of this process leave. Returns whether any did."""
        return sum(self._evict(name) for name in names) > 0

    def _pause(self, waiting: Callable[[], None]) -> None:
        waiting()
        self._sleep(POLL_S)
