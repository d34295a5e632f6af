"""Moves the parts of one process to and from a device, and tells the ledger where they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from ourvidz import log
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.vram.device import Device
from ourvidz.vram.movable import Movable
from ourvidz.vram.reservation import POLL_S, Account
from ourvidz.vram.rows import LedgerRows, Place

CONFIRM_S = 30.0
"""How long an eviction waits for the device to show that the memory is free; then it says in the log that it
is not."""

_log = log.get(__name__)


class PartMover:
    """Knows where each part of this process is (`places`), and moves it. Not thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        device: Device,
        account: Account,
        movables: Mapping[str, Movable],
        *,
        host_budget_mib: int,
        sleep: Callable[[float], None],
    ) -> None:
        self._ledger = ledger
        self._device = device
        self._account = account
        self._movables = movables
        self._host_budget_mib = host_budget_mib
        self._sleep = sleep
        self.places: dict[str, Place] = dict.fromkeys(movables, "absent")
        self.in_use: Collection[str] = ()
        """The parts that a job uses now: they stay."""
        self.work_mib = 0
        """The memory that this job may take beside them."""
        self.moves = 0
        """How many moves have been made: tells whether the places have changed meanwhile."""
        self.rows = LedgerRows(ledger, account, movables, self.places, evict=self.evict, sleep=sleep)

    def is_on_device(self, name: str) -> bool:
        """Whether a part of this process is on the device."""
        return self.places.get(name) == "device"

    def reserved_mib(self) -> int:
        """The memory of the parts on the device and of the job that uses them."""
        return self.work_mib + sum(
            self._movables[name].part.mib for name, place in self.places.items() if place == "device"
        )

    def load(self, name: str) -> None:
        """Bring a part for which memory was granted onto the device. Raises what loading raises."""
        self.moves += 1
        movable, woken = self._movables[name], self.places[name] == "host"
        started = time.perf_counter()
        self._device.allocate(name, movable.part.mib)
        movable.load()
        # Loaded, it knows its true size.
        self._device.allocate(name, movable.part.mib)
        self.places[name] = "device"
        self.rows.report(name, "resident", busy=True)
        seconds = round(time.perf_counter() - started, 3)
        _log.info("part_loaded", part=name, mib=movable.part.mib, woken=woken, seconds=seconds)

    def free_surplus(self) -> None:
        """Free what was read into the memory of the host with another part, and was not granted."""
        for name, place in self.places.items():
            if place == "absent":
                self._movables[name].unload()

    def take_back(self, moved: Mapping[str, Place]) -> None:
        """Take back the parts that were being brought, each to where it was."""
        self.moves += 1
        for name, place in moved.items():
            if place == "host":
                self._movables[name].sleep()
            else:
                self._movables[name].unload()
            self._device.release(name)
            self.places[name] = place
            self.rows.report(name, "asleep" if place == "host" else "absent")

    def free(self, name: str) -> bool:
        """Free a part, on the device or on the host. Returns whether it held memory."""
        self.moves += 1
        held = self.places[name] != "absent"
        self._movables[name].unload()
        self._device.release(name)
        self.places[name] = "absent"
        if held:
            self.rows.report(name, "absent")
        return held

    def evict(self, name: str) -> bool:
        """Let a part that no job uses leave the device, to the host's memory if it may sleep there. False
        when it is not on the device, is in use, or the ledger is away."""
        if not self.is_on_device(name) or name in self.in_use:
            return False
        self.moves += 1
        movable = self._movables[name]
        size_mib, before_mib = movable.part.mib, self._device.own_mib()
        try:
            may_sleep = self._ledger.move_resident(
                self._device.id,
                self._account.owner,
                name,
                "evicting",
                mib=size_mib,
                host_budget_mib=self._host_budget_mib,
            )
        except WorkerUnavailable:
            return False
        if may_sleep:
            try:
                movable.sleep()
            except Exception:  # noqa: BLE001  pinned memory is scarce, and this part must leave all the same
                _log.exception("part_not_asleep", part=name)
                may_sleep = False
        if not may_sleep:
            movable.unload()
        self._device.release(name)
        self.places[name] = "host" if may_sleep else "absent"
        # A job that uses other parts may take more memory meanwhile.
        self._confirm(name, before_mib - size_mib // 2 + self.work_mib)
        self.rows.report(name, "asleep" if may_sleep else "absent", mib=size_mib)
        _log.info("part_evicted", part=name, mib=size_mib, asleep=may_sleep)
        return True

    def _confirm(self, name: str, expected_mib: int) -> None:
        """Wait until the device shows that the memory is free: others would be granted what is not there.
        Half of a part's size allows for blocks that torch keeps. After `CONFIRM_S` what is still held counts
        as memory of a stranger, which nobody is granted."""
        deadline = time.monotonic() + CONFIRM_S
        while (own_mib := self._device.own_mib()) > max(0, expected_mib):
            if time.monotonic() > deadline:
                _log.error("memory_not_freed", part=name, device=self._device.id, own_mib=own_mib)
                return
            self._sleep(POLL_S)
