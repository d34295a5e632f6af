"""Where the parts of a Wan pipeline wait, and where they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import diffusers
import torch

from ourvidz.pipelines import devices

Part = Literal["text_encoder", "transformer", "vae"]
PARTS: tuple[Part, ...] = ("text_encoder", "transformer", "vae")

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Placement:
    """Nothing set: every part stays on the device.

    `offload`: parts wait in the host's memory and come to the device only for their work, so that the device
    needs room for the largest of them alone. `text_on_cpu`: the text encoder works on the CPU.
    """

    offload: bool = False
    text_on_cpu: bool = False

    def settle(self, pipe: diffusers.WanPipeline, device: torch.device) -> None:
        """Bring every part of a pipeline that was just read to where it waits."""
        for part in PARTS:
            getattr(pipe, part).to(CPU if self.offload else self._workplace(part, device))

    @contextmanager
    def at_work(
        self, pipe: diffusers.WanPipeline, part: Part, device: torch.device
    ) -> Iterator[torch.device]:
        """The device that one part is on for a while."""
        module, where = getattr(pipe, part), self._workplace(part, device)
        module.to(where)
        try:
            yield where
        finally:
            if self.offload:
                module.to(CPU)
                devices.free_memory()

    def _workplace(self, part: Part, device: torch.device) -> torch.device:
        return CPU if self.text_on_cpu and part == "text_encoder" else device
