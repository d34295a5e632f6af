"""Settings of SDXL. Unset options default to the checkpoint's and device's values."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from ourvidz.settings.kinds import LocalPath, StringList, Topic, env

SDXLScheduler = Literal[
    "euler",
    "euler_a",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "ddim",
    "unipc",
    "lcm",
]
_LORA = re.compile(r"[A-Za-z0-9._-]+=[^@]+(@-?[0-9]+(\.[0-9]+)?)?")


def _loras(value: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [entry for entry in value if not _LORA.fullmatch(entry)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} must be NAME=PATH or NAME=PATH@WEIGHT")
    return value


def _each_once(value: tuple[str, ...]) -> tuple[str, ...]:
    names = [entry.partition("=")[0] for entry in value]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice")
    return value


LoRAs = Annotated[StringList, AfterValidator(_loras)]
"""LoRA files, each `name=path` or `name=path@weight`."""
JobLoRAs = Annotated[LoRAs, AfterValidator(_each_once)]
"""LoRA files with unique names."""


class SDXLSettings(Topic):
    """The SDXL checkpoint, its pipeline options and adapters."""

    sdxl_model: LocalPath | None = env("OURVIDZ_SDXL_MODEL")
    sdxl_config: LocalPath | None = env("OURVIDZ_SDXL_CONFIG")
    """Folder of the configs and tokenizers of a checkpoint that is one file."""
    sdxl_vae: LocalPath | None = env("OURVIDZ_SDXL_VAE")
    """VAE that replaces that of the checkpoint."""
    negative_prompt: str | None = env("OURVIDZ_NEGATIVE_PROMPT")
    """Negative prompt of SDXL jobs that have none."""
    sdxl_scheduler: SDXLScheduler | None = env("OURVIDZ_SDXL_SCHEDULER")
    sdxl_few_steps: Literal["lightning", "turbo", "lcm"] | None = env("OURVIDZ_SDXL_FEW_STEPS")
    """Kind of a distilled checkpoint: its guidance is built in and the job's scale is ignored."""
    sdxl_dtype: Literal["float16", "bfloat16", "float32"] | None = env("OURVIDZ_SDXL_DTYPE")
    sdxl_attention: Literal["flash", "efficient", "cudnn", "math"] | None = env("OURVIDZ_SDXL_ATTENTION")
    sdxl_compile: bool = env("OURVIDZ_SDXL_COMPILE", False)
    sdxl_channels_last: bool = env("OURVIDZ_SDXL_CHANNELS_LAST", False)
    sdxl_vae_dtype: Literal["float32", "bfloat16"] = env("OURVIDZ_SDXL_VAE_DTYPE", "float32")
    """Dtype of a VAE that overflows in float16, as SDXL's does; bfloat16 takes half the memory and is less
    exact."""
    sdxl_vae_tiling: Literal["auto", "always"] = env("OURVIDZ_SDXL_VAE_TILING", "auto")
    sdxl_loras: LoRAs = env("OURVIDZ_SDXL_LORAS", ())
    """LoRAs that are merged into the weights for all jobs."""
    sdxl_job_loras: JobLoRAs = env("OURVIDZ_SDXL_JOB_LORAS", ())
    """LoRAs that a job may select; each has its weight here unless the job has another one."""
    ip_adapter: LocalPath | None = env("OURVIDZ_IP_ADAPTER")
    ip_adapter_encoder: LocalPath | None = env("OURVIDZ_IP_ADAPTER_ENCODER")
