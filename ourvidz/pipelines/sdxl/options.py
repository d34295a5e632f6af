"""How an operator wants SDXL to run. Nothing chosen: what the checkpoint and the device say themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ourvidz.pipelines import devices
from ourvidz.pipelines.attention import attending
from ourvidz.pipelines.devices import DTYPES
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles
from ourvidz.pipelines.sdxl.lora import Lora


@dataclass(frozen=True, slots=True)
class SDXLOptions:
    """`scheduler` is a row of `SCHEDULERS`, `few_steps` one of `FEW_STEPS`, `dtype` and `attention` are names
    of `DTYPES` and `ATTENTION`; None leaves each to the checkpoint and the device.

    `loras` are part of every picture, `job_loras` of those whose job names them. `previews`: whether
    unfinished pictures can be looked at.
    """

    scheduler: str | None = None
    few_steps: str | None = None
    dtype: str | None = None
    attention: str | None = None
    compiled: bool = False
    channels_last: bool = False
    loras: tuple[Lora, ...] = ()
    job_loras: tuple[Lora, ...] = ()
    ip_adapter: AdapterFiles | None = None
    previews: bool = True

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """What the weights are held in."""
        return DTYPES[self.dtype] if self.dtype else devices.best_dtype(device)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Attention by the chosen kernel alone, for the UNet.

        The fast ones know neither the VAE's single precision and wide heads nor the text encoders' masks,
        and nothing takes their place: around those, every job would fail.
        """
        with attending(self.attention):
            yield

    def quicken(self, pipe: Any) -> None:
        """Lay the weights out, and compile the UNet's repeated blocks on first use, as chosen."""
        if self.channels_last:
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if self.compiled:
            # Block by block: compiling all of it takes minutes and hardly runs faster.
            pipe.unet.compile_repeated_blocks(fullgraph=True)

    def info(self) -> dict[str, Any]:
        """What was chosen, as the model page shows it."""
        return {
            "few_steps": self.few_steps,
            "attention": self.attention or "auto",
            "compiled": self.compiled,
            "channels_last": self.channels_last,
            "loras": [lora.told() for lora in self.loras],
            "job_loras": [lora.told() for lora in self.job_loras],
            "ip_adapter": None if self.ip_adapter is None else self.ip_adapter.weights.stem,
        }


def lora_of(written: str) -> Lora:
    """`name=path` or `name=path@weight` as an operator writes it; the weight is 1 if it is left out."""
    name, _, rest = written.partition("=")
    path, found, weight = rest.rpartition("@")
    return Lora(name, Path(path if found else rest).expanduser(), float(weight) if found else 1.0)
