"""Builds the SDXL pipeline from the settings. Imports torch."""

from __future__ import annotations

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles
from ourvidz.pipelines.sdxl.options import SDXLOptions, parse_lora
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.tensor_cache import TensorCache
from ourvidz.settings import Settings

TINY_CAP_PX = 128
"""Longest edge (px) of the images of the packaged SDXL checkpoint."""


def build(settings: Settings) -> SDXLPipeline:
    """The SDXL pipeline of the settings. Raises `ModelLoadError`."""
    if settings.sdxl_model is None and settings.profile == "production":
        raise ModelLoadError("The production profile has no SDXL checkpoint: set OURVIDZ_SDXL_MODEL.")
    checkpoint = find_sdxl(settings.sdxl_model, config=settings.sdxl_config, vae=settings.sdxl_vae)
    cap = TINY_CAP_PX if settings.sdxl_model is None else None
    cache = TensorCache(settings.embedding_cache_mib)
    return SDXLPipeline(checkpoint, cap=cap, options=sdxl_options(settings), cache=cache)


def sdxl_options(settings: Settings) -> SDXLOptions:
    """The options for SDXL from the settings."""
    adapter, encoder = settings.ip_adapter, settings.ip_adapter_encoder
    return SDXLOptions(
        scheduler=settings.sdxl_scheduler,
        few_steps=settings.sdxl_few_steps,
        dtype=settings.sdxl_dtype,
        attention=settings.sdxl_attention,
        compiled=settings.sdxl_compile,
        channels_last=settings.sdxl_channels_last,
        loras=tuple(parse_lora(entry) for entry in settings.sdxl_loras),
        job_loras=tuple(parse_lora(entry) for entry in settings.sdxl_job_loras),
        ip_adapter=AdapterFiles(adapter, encoder) if adapter and encoder else None,
        previews=settings.previews,
        vae_tiled=settings.sdxl_vae_tiling == "always",
        vae_dtype=None if settings.sdxl_vae_dtype == "float32" else settings.sdxl_vae_dtype,
    )
