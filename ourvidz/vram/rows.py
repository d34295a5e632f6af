"""The rows of one process in the ledger: where its parts are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

from ourvidz import log
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import Resident, ResidentState
from ourvidz.vram.movable import Movable
from ourvidz.vram.reservation import POLL_S, Account

Place = Literal["absent", "device", "host"]
State = ResidentState | Literal["absent"]
STATES: Mapping[Place, State] = {"absent": "absent", "device": "resident", "host": "asleep"}
"""The state that the ledger should know of a part in each place."""
WITHOUT_LIMIT_MIB = 1 << 40
"""The budget of what is held already."""

_log = log.get(__name__)


class LedgerRows:
    """Keeps the ledger's rows of the parts of one process as they are. `places` tells where each part is;
    `evict` lets one leave the device."""

    def __init__(
        self,
        ledger: Ledger,
        account: Account,
        movables: Mapping[str, Movable],
        places: Mapping[str, Place],
        *,
        evict: Callable[[str], object],
        sleep: Callable[[float], None],
    ) -> None:
        self._ledger = ledger
        self._account = account
        self._movables = movables
        self._places = places
        self._evict = evict
        self._sleep = sleep
        self.unsettled = False
        """Whether the ledger was away when a job ended: it takes the parts for busy still."""

    def report(self, name: str, state: State, *, busy: bool = False, mib: int | None = None) -> None:
        """Tell the ledger where a part is, again until it is reached."""
        size = self._movables[name].part.mib if mib is None else mib
        device, owner = self._account.device, self._account.owner
        while True:
            try:
                self._ledger.move_resident(device, owner, name, state, mib=size, busy=busy)
                return
            except WorkerUnavailable:
                _log.warning("part_not_reported", part=name, state=state)
                self._sleep(POLL_S)

    def settle(self) -> None:
        """Tell the ledger that the job of this process has ended; `unsettled` when it is away."""
        try:
            self._ledger.settle_memory(self._account.device, self._account.owner)
            self.unsettled = False
        except WorkerUnavailable:
            self.unsettled = True

    def correct(self, rows: Iterable[Resident], *, busy: Collection[str]) -> None:
        """Tell the ledger where the parts of these rows are if it says something else, because an answer or
        its data were lost. An eviction that was begun is carried out. `busy`: the parts that a job uses."""
        for each in rows:
            if each.owner != self._account.owner or each.id not in self._places:
                continue
            place = self._places[each.id]
            if place == "device" and each.state == "evicting" and each.id not in busy:
                self._evict(each.id)
            elif STATES[place] != each.state:
                self.report(each.id, STATES[place], busy=each.id in busy)

    def restore(self, rows: Iterable[Resident], *, busy: Collection[str]) -> None:
        """Tell the ledger of the parts on the device that have no row, because it has lost its data: others
        would be granted their memory. Raises `WorkerUnavailable`."""
        known = {each.id for each in rows}
        for name, place in tuple(self._places.items()):
            if place != "device" or name in known:
                continue
            self._ledger.reserve_memory(
                self._account.device,
                self._account.owner,
                [self._movables[name].part],
                family=self._account.family,
                budget_mib=WITHOUT_LIMIT_MIB,
                lease_s=self._account.lease_s,
                turn_s=self._account.turn_s,
            )
            self.report(name, "resident", busy=name in busy)
            _log.warning("part_restored", part=name, device=self._account.device)
