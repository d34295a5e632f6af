"""Settings of the memory of a GPU that several workers share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from ourvidz.settings.kinds import StringList, Topic, env

EMULATED_GPU = re.compile(r"(?P<name>[\w-]+):(?P<gib>[0-9]+(\.[0-9]+)?)GiB(,scale=(?P<scale>0?\.[0-9]+|1))?")
"""The value of `OURVIDZ_EMULATED_GPU`."""


def _emulated_gpu(value: str | None) -> str | None:
    match = None if value is None else EMULATED_GPU.fullmatch(value)
    if value is not None and (match is None or not float(match["gib"]) or not float(match["scale"] or 1)):
        raise ValueError("must be NAME:SIZEGiB or NAME:SIZEGiB,scale=FACTOR, 0 < SIZE and 0 < FACTOR <= 1")
    return value


MODEL_NAMES = ("sdxl", "wan", "qwen_instruct", "qwen_base")


def _model_names(value: tuple[str, ...]) -> tuple[str, ...]:
    if value == ("none",):
        return ()
    unknown = [name for name in value if name not in MODEL_NAMES]
    if unknown:
        raise ValueError(f"must be {', '.join(MODEL_NAMES)} or none, not {', '.join(unknown)}")
    return value


ModelNames = Annotated[StringList, AfterValidator(_model_names)]
"""Names of models; `none` stands for no model."""


class MemorySettings(Topic):
    """How the workers of one GPU share its memory."""

    gpu_budget_mib: int | None = env("OURVIDZ_GPU_BUDGET_MIB", gt=0)
    """Memory of the GPU that the workers on it may use together (MiB); by default all but 2 GiB."""
    host_budget_mib: int = env("OURVIDZ_HOST_BUDGET_MIB", 32768, ge=0)
    """Memory of the host in which models may sleep that had to leave the GPU (MiB), the caches of encoded
    prompts and references included; 0 unloads them."""
    gpu_turn_s: float = env("OURVIDZ_GPU_TURN_S", 60.0, gt=0)
    """Time for which a worker keeps the GPU's memory while another one waits for it."""
    gpu_pinned: ModelNames = env("OURVIDZ_GPU_PINNED", ("sdxl",))
    """Models that leave the GPU only by force: `sdxl`, `wan`, `qwen_instruct`, `qwen_base`, or `none`."""
    emulated_gpu: Annotated[str | None, AfterValidator(_emulated_gpu)] = env("OURVIDZ_EMULATED_GPU")
    """Emulated GPU for a machine without one, such as `card:48GiB,scale=0.001`; the scale is that of the
    tiny models to real ones."""
