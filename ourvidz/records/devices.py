"""Device memory as the ledger stores it: parts of models, who holds them, who waits for memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ourvidz.records.codec import pairs

ResidentState = Literal["loading", "resident", "evicting", "asleep"]
"""`asleep`: in the host's memory, the device's memory is free. A part that is absent has no row."""
Answer = Literal["granted", "waiting", "leave"]
"""`leave`: a part of the owner's own must leave the device first, its turn is over and others wait."""
WORKER_MARK = "@"
"""Separates the name of a part from the worker that holds it."""
PART_MARK = "."
"""Separates the name of a model from that of its part."""


def part_id(name: str, worker_id: str) -> str:
    """The id of a model, of a part of it, or of the memory that a family's jobs work in, as a part of this
    worker."""
    place = worker_id.partition(WORKER_MARK)[2]
    return f"{name}{WORKER_MARK}{place}" if place else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a model that is moved as a whole, for instance a text encoder.

    `id` names it on its device: the model, behind a `.` the part where the model has several, and behind an
    `@` host and GPU of its worker, because several workers of a family may share a device. `mib` is the
    device memory that it needs, `cost_s` how long it takes to bring it back. A `pinned` part leaves only by
    force. `work` is what a job needs beside the weights: it lasts until the stage ends that needs it.
    """

    id: str
    mib: int
    cost_s: float = 0.0
    pinned: bool = False
    work: bool = False

    @property
    def name(self) -> str:
        """The name of model and part, which several workers may hold. Earlier releases have no other id."""
        return self.id.partition(WORKER_MARK)[0]

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.name.partition(PART_MARK)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident(Part):
    """A part that holds memory. `busy`: a job uses it. Times are those of the ledger: `since` when the state
    began, `used_at` of the last use, `turn_began` when its owner got the device, `lease_until` until when the
    owner is known to live. `host_mib`: memory of the host that it sleeps in."""

    owner: str
    family: str
    state: ResidentState
    busy: bool
    since: float
    used_at: float
    turn_began: float
    lease_until: float
    host_mib: int = 0

    @property
    def device_mib(self) -> int:
        """The device memory that it holds (MiB)."""
        return 0 if self.state == "asleep" else self.mib


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryWait:
    """An owner that waits for `needed_mib` more memory `since` then, and asks parts to leave; by `force`
    pinned ones too."""

    owner: str
    family: str
    needed_mib: int
    since: float
    asks: tuple[str, ...] = ()
    force: bool = False
    lease_until: float = 0.0


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What the ledger knows of a device at the time `now`. `measured` is the last measurement by any of its
    workers, {} before the first."""

    now: float
    residents: tuple[Resident, ...] = ()
    waits: tuple[MemoryWait, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    measured_at: float | None = None

    @property
    def held_mib(self) -> int:
        """The device memory of all residents (MiB)."""
        return sum(each.device_mib for each in self.residents)

    def is_asked(self, part: str) -> bool:
        """Whether somebody who waits asks this part to leave."""
        return any(part in wait.asks for wait in self.waits)

    def is_forced(self, part: str) -> bool:
        """Whether somebody asks this part to leave by force."""
        return any(wait.force and part in wait.asks for wait in self.waits)

    def missing_mib(self, parts: Iterable[Part], owner: str) -> int:
        """The device memory that these parts need beyond what their owner holds of them already (MiB)."""
        held = {each.id: each.device_mib for each in self.residents if each.owner == owner}
        return sum(max(0, part.mib - held.get(part.id, 0)) for part in parts)


def load_memory(
    now: str, residents: list[str], waits: list[str], measured: str = "", measured_at: str = ""
) -> DeviceMemory:
    """Read what the scripts return of a device."""
    return DeviceMemory(
        float(now),
        tuple(sorted((_resident(*row) for row in pairs(residents).items()), key=lambda each: each.id)),
        tuple(sorted((_wait(*row) for row in pairs(waits).items()), key=lambda each: each.since)),
        json.loads(measured) if measured else {},
        float(measured_at) if measured_at else None,
    )


def _resident(part: str, data: str) -> Resident:
    row = json.loads(data)
    known = {name: row[name] for name in Resident.__dataclass_fields__ if name in row}
    return Resident(**known | {"id": part, "mib": int(row["mib"]), "host_mib": int(row.get("host_mib", 0))})


def _wait(owner: str, data: str) -> MemoryWait:
    row = json.loads(data)
    return MemoryWait(
        owner=owner,
        family=row["family"],
        needed_mib=int(row["needed_mib"]),
        since=row["since"],
        asks=tuple(row["asks"] or ()),
        force=row["force"],
        lease_until=row["lease_until"],
    )
