"""The operator's options for SDXL. Without any, the checkpoint and the device decide."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ourvidz.pipelines import devices
from ourvidz.pipelines.attention import attention_kernel
from ourvidz.pipelines.compilation import compile_blocks
from ourvidz.pipelines.devices import DTYPES
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles
from ourvidz.pipelines.sdxl.lora import LoraFile


@dataclass(frozen=True, slots=True)
class SDXLOptions:
    """`scheduler` is a key of `SCHEDULERS`, `few_steps` one of `FEW_STEPS`, `dtype` one of `DTYPES`,
    `attention` one of `ATTENTION_KERNELS`; None leaves each to the checkpoint and the device.

    `compiled` compiles the UNet's blocks, `channels_last` sets the memory format of UNet and VAE. `loras` are
    merged into the weights, `job_loras` are available to jobs by name. `previews` enables previews of
    unfinished images. `vae_tiled`: the VAE always works in tiles. `vae_dtype`, one of `DTYPES`: that of a VAE
    that overflows in float16; None is float32.
    """

    scheduler: str | None = None
    few_steps: str | None = None
    dtype: str | None = None
    attention: str | None = None
    compiled: bool = False
    channels_last: bool = False
    loras: tuple[LoraFile, ...] = ()
    job_loras: tuple[LoraFile, ...] = ()
    ip_adapter: AdapterFiles | None = None
    previews: bool = True
    vae_tiled: bool = False
    vae_dtype: str | None = None

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype of the weights on this device."""
        return DTYPES[self.dtype] if self.dtype else devices.best_dtype(device)

    def attention_context(self) -> AbstractContextManager[None]:
        """Restricts the UNet to the selected attention kernel.

        For the UNet only: the fast kernels support neither the VAE's float32 and wide heads nor the text
        encoders' masks, and torch would not fall back to another kernel there.
        """
        return attention_kernel(self.attention)

    def optimize(self, pipe: Any) -> None:
        """Set the memory format, and compile the UNet's repeated blocks on their first use, as selected."""
        if self.channels_last:
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if self.compiled:
            compile_blocks(pipe.unet)

    def added_files(self) -> dict[str, Path]:
        """The weights that are used beside the checkpoint, by a label that says how."""
        merged = {f"lora {lora.label()}": lora.path for lora in self.loras}
        by_jobs = {f"job lora {lora.name}": lora.path for lora in self.job_loras}
        if self.ip_adapter is None:
            return merged | by_jobs
        adapter = {"ip_adapter": self.ip_adapter.weights, "ip_adapter encoder": self.ip_adapter.encoder}
        return merged | by_jobs | adapter

    def info(self) -> dict[str, Any]:
        """The options as `/model/info` shows them."""
        return {
            "few_steps": self.few_steps,
            "attention": self.attention or "auto",
            "compiled": self.compiled,
            "channels_last": self.channels_last,
            "vae_tiling": "always" if self.vae_tiled else "auto",
            # Absent by default: receipts of earlier releases have no such option.
            **({"vae_dtype": self.vae_dtype} if self.vae_dtype else {}),
            "loras": [lora.label() for lora in self.loras],
            "job_loras": [lora.label() for lora in self.job_loras],
            "ip_adapter": None if self.ip_adapter is None else self.ip_adapter.weights.stem,
        }


def parse_lora(setting: str) -> LoraFile:
    """A LoRA file from `name=path` or `name=path@weight`; the default weight is 1."""
    name, _, rest = setting.partition("=")
    path, at, weight = rest.rpartition("@")
    return LoraFile(name, Path(path if at else rest).expanduser(), float(weight) if at else 1.0)
