"""How much of a device's memory this project may use."""

from __future__ import annotations

from ourvidz.records.devices import DeviceMemory
from ourvidz.vram.device import Device
from ourvidz.vram.plan import OVERHEAD_MIB


class Budget:
    """The budget of one device in MiB: what an operator set, or all but `OVERHEAD_MIB`; less where processes
    that are none of ours hold memory."""

    def __init__(self, device: Device, configured_mib: int | None) -> None:
        self._device = device
        total = device.total_mib()
        self.limit_mib = total - OVERHEAD_MIB if configured_mib is None else min(configured_mib, total)
        """What can be had at best."""
        self.foreign_mib = 0
        """What strangers held when it was last measured."""

    @property
    def reserve_mib(self) -> int:
        """What the budget leaves free of the whole device."""
        return max(0, self._device.total_mib() - self.limit_mib)

    @property
    def is_foreign_limited(self) -> bool:
        """Whether strangers hold so much that the budget cannot be used up."""
        return self.foreign_mib > self.reserve_mib

    def mib(self) -> int:
        """What can be had now."""
        return max(0, min(self.limit_mib, self._device.total_mib() - self.foreign_mib))

    def limit_process(self, owner: str, memory: DeviceMemory, *, reserved_mib: int = 0) -> None:
        """Let the process of an owner allocate what others have not reserved, at least what it has reserved
        itself: a job that needs more than was expected falls back, and leaves neighbours what they were
        granted. `reserved_mib`: what it has reserved by now, if `memory` may be older."""
        own_mib = sum(each.device_mib for each in memory.residents if each.owner == owner)
        left_mib = self.mib() - (memory.held_mib - own_mib)
        self._device.limit(max(left_mib, own_mib, reserved_mib))

    def measure(self, memory: DeviceMemory) -> None:
        """Measure what strangers hold. Only while nothing moves: a part that is being moved counts in the
        ledger and not yet, or no longer, on the device."""
        if any(each.state in ("loading", "evicting") or each.work for each in memory.residents):
            return
        self.foreign_mib = max(0, self.used_mib() - memory.held_mib)

    def used_mib(self) -> int:
        """What all processes hold, measured now."""
        return self._device.total_mib() - self._device.free_mib()

    def report(self) -> dict[str, int]:
        """The figures of the device, as they are noted in the ledger."""
        return {
            "total_mib": self._device.total_mib(),
            "free_mib": self._device.free_mib(),
            "foreign_mib": self.foreign_mib,
            "budget_mib": self.mib(),
        }
