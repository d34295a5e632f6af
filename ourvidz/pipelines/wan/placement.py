"""Device placement of the components of a Wan pipeline: while idle and while in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
from diffusers.hooks import apply_group_offloading

from ourvidz.pipelines import devices

ComponentName = Literal["text_encoder", "transformer", "vae", "image_encoder"]
REQUIRED_COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "transformer", "vae")
COMPONENTS: tuple[ComponentName, ...] = (*REQUIRED_COMPONENTS, "image_encoder")
"""The image encoder is part of the image-to-video checkpoints only."""
_GROUPABLE: tuple[ComponentName, ...] = ("text_encoder", "transformer")

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Placement:
    """By default every component stays on the device.

    `offload`: components are kept in host memory and moved to the device only while in use, so that the
    device needs memory for the largest one only. `text_on_cpu`: the text encoder runs on the CPU. `grouped`:
    transformer and text encoder are kept in host memory and moved block by block (layer by layer) while they
    run.
    """

    offload: bool = False
    text_on_cpu: bool = False
    grouped: bool = False

    @property
    def moves_all(self) -> bool:
        """Whether every component that is moved as a whole belongs on the device."""
        return not (self.offload or self.text_on_cpu)

    def place(
        self, pipe: Any, device: torch.device, components: tuple[ComponentName, ...] = COMPONENTS
    ) -> None:
        """Move these components of a newly read pipeline, if it has them, to their idle device."""
        for name in components:
            module = getattr(pipe, name, None)
            if module is None:
                continue
            if self.is_grouped(name):
                _offload_in_groups(module, device)
            else:
                module.to(CPU if self.offload else self._run_device(name, device))

    @contextmanager
    def in_use(self, pipe: Any, component: ComponentName, device: torch.device) -> Iterator[torch.device]:
        """Move one component to the device where it runs inside this context; yields that device."""
        module, run_device = getattr(pipe, component), self._run_device(component, device)
        if self.is_grouped(component):
            yield run_device
            return
        module.to(run_device)
        try:
            yield run_device
        finally:
            if self.offload:
                module.to(CPU)
                devices.free_memory()

    def _run_device(self, component: ComponentName, device: torch.device) -> torch.device:
        return CPU if self.text_on_cpu and component == "text_encoder" else device

    def is_grouped(self, component: ComponentName) -> bool:
        """Whether diffusers moves this component's weights itself, group by group."""
        on_cpu = self.text_on_cpu and component == "text_encoder"
        return self.grouped and component in _GROUPABLE and not on_cpu


def _offload_in_groups(module: torch.nn.Module, device: torch.device) -> None:
    """Let diffusers move this module's weights; the next group is copied while the device computes."""
    by_block = isinstance(module, diffusers.ModelMixin)
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=CPU,
        offload_type="block_level" if by_block else "leaf_level",
        num_blocks_per_group=1 if by_block else None,
        use_stream=device.type == "cuda",
    )
