"""Where the parts of a Wan pipeline wait, and where they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
from diffusers.hooks import apply_group_offloading

from ourvidz.pipelines import devices

Part = Literal["text_encoder", "transformer", "vae", "image_encoder"]
PARTS: tuple[Part, ...] = ("text_encoder", "transformer", "vae")
EVERY: tuple[Part, ...] = (*PARTS, "image_encoder")
"""Some checkpoints have one more."""
_GROUPED: tuple[Part, ...] = ("text_encoder", "transformer")

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Placement:
    """Nothing set: every part stays on the device.

    `offload`: parts wait in the host's memory and come to the device only for their work, so that the device
    needs room for the largest of them alone. `text_on_cpu`: the text encoder works on the CPU. `grouped`: of
    transformer and text encoder only what works at the moment is on the device, a block or a layer.
    """

    offload: bool = False
    text_on_cpu: bool = False
    grouped: bool = False

    def settle(self, pipe: Any, device: torch.device, parts: tuple[Part, ...] = EVERY) -> None:
        """Bring these parts of a pipeline that was just read, as far as it has them, to where they wait."""
        for part in parts:
            module = getattr(pipe, part, None)
            if module is None:
                continue
            if self._in_groups(part):
                _group(module, device)
            else:
                module.to(CPU if self.offload else self._workplace(part, device))

    @contextmanager
    def at_work(self, pipe: Any, part: Part, device: torch.device) -> Iterator[torch.device]:
        """The device that one part is on for a while."""
        module, where = getattr(pipe, part), self._workplace(part, device)
        if self._in_groups(part):
            yield where
            return
        module.to(where)
        try:
            yield where
        finally:
            if self.offload:
                module.to(CPU)
                devices.free_memory()

    def _workplace(self, part: Part, device: torch.device) -> torch.device:
        return CPU if self.text_on_cpu and part == "text_encoder" else device

    def _in_groups(self, part: Part) -> bool:
        return self.grouped and part in _GROUPED and not (self.text_on_cpu and part == "text_encoder")


def _group(module: torch.nn.Module, device: torch.device) -> None:
    """Let diffusers move this module's weights; the next ones come while the device computes."""
    blocks = isinstance(module, diffusers.ModelMixin)
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=CPU,
        offload_type="block_level" if blocks else "leaf_level",
        num_blocks_per_group=1 if blocks else None,
        use_stream=device.type == "cuda",
    )
