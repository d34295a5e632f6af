"""The operator's options for Wan. Without any, the checkpoint and the device decide."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.attention import attention_kernel
from ourvidz.pipelines.compilation import compile_blocks
from ourvidz.pipelines.devices import DTYPES
from ourvidz.pipelines.wan.caches import CacheName


@dataclass(frozen=True, slots=True)
class WanOptions:
    """`dtype` is a key of `DTYPES`, `attention` one of `ATTENTION_KERNELS`; None leaves each to the device.

    `compiled` compiles the transformer's blocks. `few_steps`: the checkpoint is distilled with guidance and
    runs without it. `cache` is a step cache, `threshold` overrides its default, `calibrations` is the folder
    for measured calibrations (None keeps them in memory). `tiled`: the VAE always works in tiles, not only
    after memory ran out. `grouped`: weights stay in host memory and are moved to the GPU block by block.
    `previews` enables previews of unfinished clips.
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
        """Raise `ModelLoadError` for options that this device does not support."""
        if self.grouped and device.type != "cuda":
            raise ModelLoadError("OURVIDZ_WAN_GROUP_OFFLOAD needs a GPU, and torch sees none.")

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype of all weights but the VAE's. bfloat16 on a GPU: Wan's text encoder overflows in
        float16."""
        if self.dtype:
            return DTYPES[self.dtype]
        return torch.bfloat16 if device.type == "cuda" else torch.float32

    def attention_context(self) -> AbstractContextManager[None]:
        """Restricts the transformer to the selected attention kernel. Not for the VAE and the text encoder:
        the fast kernels do not support their shapes."""
        return attention_kernel(self.attention)

    def optimize(self, transformer: Any) -> None:
        """Compile the transformer's repeated blocks on their first use, if selected."""
        if self.compiled:
            compile_blocks(transformer)

    def info(self) -> dict[str, Any]:
        """The options as `/model/info` shows them."""
        return {
            "few_steps": self.few_steps,
            "attention": self.attention or "auto",
            "compiled": self.compiled,
            "vae_tiling": "always" if self.tiled else "auto",
            "group_offload": self.grouped,
            "cache": self.cache,
            "cache_threshold": self.threshold,
        }
