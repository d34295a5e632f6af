"""How an operator wants Wan to run. Nothing chosen: what the checkpoint and the device say themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.attention import attending
from ourvidz.pipelines.devices import DTYPES
from ourvidz.pipelines.wan.caches import CacheName


@dataclass(frozen=True, slots=True)
class WanOptions:
    """`dtype` and `attention` are names of `DTYPES` and `ATTENTION`, None leaves each to the device.

    `cache` is a step cache, `threshold` how much it may change where it takes one, and `calibrations` the
    folder where what it learns of a checkpoint is kept; None keeps it in memory. `few_steps`: the guidance is
    built into the checkpoint. `tiled`: the VAE always works in tiles; else only when memory runs out.
    `grouped`: weights wait in the host's memory, and come to the GPU a block at a time. `previews`: whether
    unfinished clips can be looked at.
    """

    dtype: str | None = None
    attention: str | None = None
    compiled: bool = False
    few_steps: bool = False
    cache: CacheName | None = None
    threshold: float | None = None
    calibrations: Path | None = None
    tiled: bool = False
    grouped: bool = False
    previews: bool = True

    def check(self, device: torch.device) -> None:
        """`ModelLoadError` for what this device cannot do."""
        if self.grouped and device.type != "cuda":
            raise ModelLoadError("OURVIDZ_WAN_GROUP_OFFLOAD needs a GPU, and torch sees none.")

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """What all weights but the VAE's are held in. Wan's text encoder overflows in float16."""
        if self.dtype:
            return DTYPES[self.dtype]
        return torch.bfloat16 if device.type == "cuda" else torch.float32

    def attending(self) -> AbstractContextManager[None]:
        """Attention by the chosen kernel alone, for the transformer: the VAE's and the text encoder's are of
        shapes that the fast kernels do not know."""
        return attending(self.attention)

    def quicken(self, transformer: Any) -> None:
        """Compile the transformer's repeated blocks on first use, if that was chosen."""
        if not self.compiled:
            return
        for block in transformer.modules():
            if type(block).__name__ in transformer._repeated_blocks:
                # Not `compile_repeated_blocks`: that would compile the hooks of step caches too, which come
                # and go with every job.
                block.forward = torch.compile(block.forward, fullgraph=True)

    def info(self) -> dict[str, Any]:
        """What was chosen, as the model page shows it."""
        return {
            "few_steps": self.few_steps,
            "attention": self.attention or "auto",
            "compiled": self.compiled,
            "vae_tiling": "always" if self.tiled else "auto",
            "group_offload": self.grouped,
            "cache": self.cache,
            "cache_threshold": self.threshold,
        }
