"""When the idle parts of a process leave: pure functions of what the ledger knows of a device."""

from __future__ import annotations

from collections.abc import Collection

from ourvidz.records.devices import DeviceMemory, Resident
from ourvidz.vram.budget import Budget
from ourvidz.vram.eviction import evictions

GRACE_S = 0.5
"""A part counts as idle when it has not been used for so long: between two jobs of a queue it is not."""
ABANDONED_S = 30.0
"""How long ago the leases of an owner must have ended that nobody can see."""


def turn_is_over(part: Resident, memory: DeviceMemory, turn_s: float) -> bool:
    """Whether somebody waits for a part whose owner has had the device for a turn."""
    here_s = memory.now - part.turn_began
    return memory.is_asked(part.id) and (memory.is_forced(part.id) or here_s >= turn_s)


def may_leave(part: Resident, memory: DeviceMemory, turn_s: float) -> bool:
    """Whether an idle part leaves now: somebody asks for it, and it was not brought a moment ago."""
    if part.busy or part.state != "resident" or not memory.is_asked(part.id):
        return False
    # The turn of a model may have begun with another one of its parts.
    idle_s, here_s = memory.now - part.used_at, memory.now - max(part.turn_began, part.since)
    return memory.is_forced(part.id) or (idle_s >= GRACE_S and here_s >= min(part.cost_s, turn_s))


def displaced(memory: DeviceMemory, budget: Budget) -> Collection[str]:
    """The parts that leave because other programs have taken so much memory that less is free than the
    budget leaves free: the next allocation of any process would fail."""
    if not budget.is_foreign_limited:
        return ()
    return evictions(memory.residents, budget.reserve_mib, budget.mib(), memory.now).parts


def is_abandoned(owner: str, memory: DeviceMemory, used_mib: int) -> bool:
    """Whether an owner whose process cannot be seen has left its rows behind: its leases ended `ABANDONED_S`
    ago, and the device (`used_mib` of it are taken) shows at least half of its memory free, as the driver
    frees it with the process. A frozen process still holds its memory."""
    own = [each for each in memory.residents if each.owner == owner]
    others = [each for each in memory.residents if each.owner != owner]
    if any(each.lease_until + ABANDONED_S > memory.now for each in own):
        return False
    if any(each.work or each.state in ("loading", "evicting") for each in others):
        return False  # what they hold is not what the device shows
    own_mib, others_mib = (sum(each.device_mib for each in rows) for rows in (own, others))
    return not own_mib or used_mib <= others_mib + own_mib / 2
