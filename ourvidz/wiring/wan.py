"""Builds the Wan pipeline from the settings. Imports torch."""

from __future__ import annotations

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.tensor_cache import TensorCache
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.settings import Settings

TINY_WAN_CAP_PX = 64
"""Longest edge (px) of the clips of the packaged Wan checkpoint."""


def build(settings: Settings) -> WanPipeline:
    """The Wan pipeline of the settings, with its VACE checkpoint if one is set. Raises `ModelLoadError`."""
    if settings.wan_model is None and settings.profile == "production":
        raise ModelLoadError("The production profile has no Wan checkpoint: set OURVIDZ_WAN_MODEL.")
    checkpoint = find_wan(settings.wan_model, expected="t2v")
    vace_folder = settings.wan_vace_model
    vace = None if vace_folder is None else find_wan(vace_folder, expected="vace")
    cap = TINY_WAN_CAP_PX if settings.wan_model is None else None
    cache = TensorCache(settings.embedding_cache_mib)
    return WanPipeline(checkpoint, vace=vace, cap=cap, options=wan_options(settings), cache=cache)


def wan_options(settings: Settings) -> WanOptions:
    """The options for Wan from the settings."""
    return WanOptions(
        dtype=settings.wan_dtype,
        attention=settings.wan_attention,
        compiled=settings.wan_compile,
        few_steps=settings.wan_few_steps,
        cache=settings.wan_cache,
        threshold=settings.wan_cache_threshold,
        calibrations=settings.state_dir / "wan-calibrations",
        tiled=settings.wan_vae_tiling == "always",
        grouped=settings.wan_group_offload,
        previews=settings.previews,
    )
