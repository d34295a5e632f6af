"""The memory of devices: which parts of models reside on a device, who holds them, who waits for memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from ourvidz.ledger.base import LedgerBase
from ourvidz.records.devices import Answer, DeviceMemory, Part, ResidentState, load_memory


class DeviceOperations(LedgerBase):
    """The verbs about device memory. An owner is one process; its id names the host and the process."""

    def reserve_memory(
        self,
        device: str,
        owner: str,
        parts: Sequence[Part],
        *,
        family: str,
        budget_mib: int,
        lease_s: float,
        turn_s: float,
        asks: Sequence[str] = (),
        force: bool = False,
        waited_since: float | None = None,
    ) -> tuple[Answer, DeviceMemory]:
        """Ask for the memory of all parts. Granted, they are `loading` until the owner says otherwise; parts
        that are resident already stay so. Not granted, the owner keeps its place among those who wait for as
        long as it asks again within `lease_s` seconds.

        Who waits longest is served first, but an owner keeps what it has for `turn_s` seconds. A later stage
        of a job counts as waiting since the job first asked (`waited_since`, a time of the ledger).
        """
        answer, now, residents, waits = self._connection.run_script(
            "reserve_memory",
            *(device, owner, family, lease_s, turn_s, budget_mib, json.dumps(list(asks)), int(force)),
            *(json.dumps([asdict(part) for part in parts]), waited_since or 0),
        )
        return answer, load_memory(now, residents, waits)

    def move_resident(
        self,
        device: str,
        owner: str,
        part: str,
        state: ResidentState | Literal["absent"],
        *,
        mib: int = 0,
        busy: bool = False,
        host_budget_mib: int = 0,
    ) -> bool:
        """Change the state of an owner's part. For `evicting`, answers whether it may sleep in the host's
        memory, of which all sleeping parts together get `host_budget_mib`; else whether it was its own."""
        changed = self._connection.run_script(
            "move_resident", device, owner, part, state, mib, int(busy), host_budget_mib
        )
        return int(changed) == 2 if state == "evicting" else bool(changed)

    def settle_memory(self, device: str, owner: str) -> int:
        """Mark the parts of an owner as idle, release what its job needed beside the weights, and end its
        wait. Returns how many parts remain."""
        return int(self._connection.run_script("settle_memory", device, owner))

    def renew_memory(
        self, device: str, owner: str, *, lease_s: float, measured: Mapping[str, Any]
    ) -> DeviceMemory:
        """Extend the leases of an owner's parts, note a measurement of the device, and read the device."""
        now, residents, waits = self._connection.run_script(
            "renew_memory", device, owner, lease_s, json.dumps(measured), quick=True
        )
        return load_memory(now, residents, waits)

    def release_memory(self, device: str, owner: str) -> int:
        """Delete all parts and the wait of an owner whose process has ended; returns how many parts."""
        return int(self._connection.run_script("release_memory", device, owner))

    def pin_part(self, model: str, pinned: bool) -> int:
        """Pin a model on every device, or not, whatever the settings of its owners say. Returns how many
        workers hold it."""
        return int(self._connection.run_script("pin_part", model, int(pinned)))

    def pins(self) -> dict[str, bool]:
        """What `pin_part` has said, by model."""
        pins = self._connection.with_retries(lambda: self._connection.client.hgetall(self._keys.pinned))
        return {part: pinned == "1" for part, pinned in pins.items()}

    def device_memory(self, device: str) -> DeviceMemory:
        """The residents of a device, who waits, and the last measurement."""
        answer = self._connection.run_script("device_memory", device, quick=True)
        return load_memory(*answer)

    def devices(self) -> list[str]:
        """The devices whose memory was granted, and which were measured within the last hour; sorted."""
        return sorted(self._connection.run_script("list_devices", quick=True))
