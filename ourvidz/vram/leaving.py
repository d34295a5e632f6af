"""When the idle parts of a process leave: pure functions of what the ledger knows of a device."""

from __future__ import annotations

from collections.abc import Collection

from ourvidz.records.devices import DeviceMemory, Resident
from ourvidz.vram.budget import Budget
from ourvidz.vram.eviction import evictions

GRACE_S = 0.5
"""A part counts as idle when it has not been used for so long: between two jobs of a queue it is not."""


def turn_is_over(part: Resident, memory: DeviceMemory, turn_s: float) -> bool:
    """Whether somebody waits for a part whose owner has had the device for a turn."""
    here_s = memory.now - part.turn_began
    return memory.is_asked(part.id) and (memory.is_forced(part.id) or here_s >= turn_s)


def may_leave(part: Resident, memory: DeviceMemory, turn_s: float) -> bool:
    """Whether an idle part leaves now: somebody asks for it, and it was not brought a moment ago."""
    if part.busy or part.state != "resident" or not memory.is_asked(part.id):
        return False
    idle_s, here_s = memory.now - part.used_at, memory.now - part.turn_began
    return memory.is_forced(part.id) or (idle_s >= GRACE_S and here_s >= min(part.cost_s, turn_s))


def displaced(memory: DeviceMemory, budget: Budget) -> Collection[str]:
    """The parts that leave because other programs have taken so much memory that less is free than the
    budget leaves free: the next allocation of any process would fail."""
    if not budget.is_foreign_limited:
        return ()
    return evictions(memory.residents, budget.reserve_mib, budget.mib(), memory.now).parts
