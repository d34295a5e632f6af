"""The warm pipelines of a worker. Reaches torch: only a worker's child imports this."""

from __future__ import annotations

from typing import Any

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.base import ImagePipeline, VideoPipeline
from ourvidz.pipelines.checkpoints import find_sdxl, find_wan
from ourvidz.pipelines.ip_adapter import AdapterFiles
from ourvidz.pipelines.options import SDXLOptions, lora_of
from ourvidz.pipelines.sdxl import SDXLPipeline
from ourvidz.pipelines.wan import WanPipeline
from ourvidz.settings import Settings
from ourvidz.vram import gpu

TINY_CAP_PX = 128
"""Longest edge that the tiny profile renders."""
TINY_WAN_CAP_PX = 64
"""And of its clips."""


class WarmModels:
    """The pipelines of one family, loaded once; implements `Models`."""

    def __init__(self, sdxl: SDXLPipeline | None = None, *, wan: WanPipeline | None = None) -> None:
        self._sdxl = sdxl
        self._wan = wan

    def warm(self) -> None:
        """Load what this worker serves. `ModelLoadError` says what is wrong."""
        for pipeline in self._served().values():
            pipeline.load()

    def images(self) -> ImagePipeline:
        """The pipeline for SDXL jobs, loaded. `ModelLoadError` on a worker of another family."""
        if self._sdxl is None:
            raise ModelLoadError("This worker has no pipeline for pictures.")
        self._sdxl.load()
        return self._sdxl

    def videos(self) -> VideoPipeline:
        """The pipeline for Wan jobs, loaded. `ModelLoadError` on a worker of another family."""
        if self._wan is None:
            raise ModelLoadError("This worker has no pipeline for videos.")
        self._wan.load()
        return self._wan

    def reload(self) -> None:
        """Drop everything and load it again."""
        for pipeline in self._served().values():
            pipeline.unload()
            pipeline.load()

    def info(self) -> dict[str, Any]:
        """What is loaded, where, and the memory it takes (MiB)."""
        return {family: pipeline.info() for family, pipeline in self._served().items()}

    def memory(self) -> dict[str, Any]:
        """The memory of this worker's GPU (MiB and GiB); zeros where there is none."""
        return gpu.memory()

    def _served(self) -> dict[str, SDXLPipeline | WanPipeline]:
        both = {"sdxl": self._sdxl, "wan": self._wan}
        return {family: pipeline for family, pipeline in both.items() if pipeline is not None}


def build(settings: Settings, family: str) -> WarmModels:
    """The pipelines of one family, not loaded yet. `ModelLoadError` says which weights are missing."""
    if family == "wan":
        return WarmModels(wan=_wan(settings))
    if family != "sdxl":
        raise ModelLoadError(f"This version has no pipelines for {family!r}.")
    checkpoint = find_sdxl(settings.sdxl_model)
    cap = TINY_CAP_PX if settings.sdxl_model is None else None
    return WarmModels(SDXLPipeline(checkpoint, cap=cap, options=sdxl_options(settings)))


def _wan(settings: Settings) -> WanPipeline:
    if settings.wan_model is None and settings.profile == "production":
        raise ModelLoadError("The production profile has no Wan checkpoint: set OURVIDZ_WAN_MODEL.")
    checkpoint = find_wan(settings.wan_model)
    return WanPipeline(checkpoint, cap=TINY_WAN_CAP_PX if settings.wan_model is None else None)


def sdxl_options(settings: Settings) -> SDXLOptions:
    """How the operator wants SDXL to run."""
    adapter, encoder = settings.ip_adapter, settings.ip_adapter_encoder
    return SDXLOptions(
        scheduler=settings.sdxl_scheduler,
        few_steps=settings.sdxl_few_steps,
        dtype=settings.sdxl_dtype,
        attention=settings.sdxl_attention,
        compiled=settings.sdxl_compile,
        channels_last=settings.sdxl_channels_last,
        loras=tuple(lora_of(written) for written in settings.sdxl_loras),
        ip_adapter=AdapterFiles(adapter, encoder) if adapter and encoder else None,
        previews=settings.previews,
    )
