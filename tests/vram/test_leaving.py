"""Rows of processes that cannot be seen: when their memory is given to others."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.records.devices import DeviceMemory, Resident
from ourvidz.vram.leaving import ABANDONED_S, is_abandoned

NOW = 1000.0
GONE, LIVING = "wan in a container", "sdxl here"


def resident(owner: str, mib: int, **fields: Any) -> Resident:
    """A row; that of `GONE` has a lease that ended long ago."""
    lease_until = NOW - ABANDONED_S - 1 if owner == GONE else NOW + 10
    defaults: dict[str, Any] = {
        "id": owner, "family": "wan", "state": "resident", "busy": False, "since": 0.0, "used_at": 0.0,
        "turn_began": 0.0, "lease_until": lease_until,
    }  # fmt: skip
    return Resident(owner=owner, mib=mib, **(defaults | fields))


@pytest.mark.parametrize(
    ("used_mib", "own", "other", "abandoned"),
    [
        (10, {}, {}, True),
        (40, {}, {}, False),  # its memory is taken still: it may be frozen
        (24, {}, {}, True),  # contexts of the driver
        (10, {"lease_until": NOW - 1}, {}, False),
        (10, {}, {"state": "loading"}, False),
        (10, {}, {"work": True}, False),
        (10, {"state": "asleep", "host_mib": 30}, {}, True),
    ],
)
def test_rows_of_a_container_that_is_gone_are_released_when_its_memory_is_free(
    used_mib: int, own: dict[str, Any], other: dict[str, Any], abandoned: bool
) -> None:
    """By its lease and by measurement: nobody sees its process."""
    memory = DeviceMemory(NOW, (resident(GONE, 30, **own), resident(LIVING, 10, **other)))
    assert is_abandoned(GONE, memory, used_mib) is abandoned
    assert not is_abandoned(LIVING, memory, 0)
