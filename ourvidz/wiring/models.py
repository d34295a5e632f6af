"""The warm pipelines of a worker. Reaches torch: only a worker's child imports this."""

from __future__ import annotations

from typing import Any

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.base import ImagePipeline
from ourvidz.pipelines.checkpoints import find_sdxl
from ourvidz.pipelines.sdxl import SDXLPipeline
from ourvidz.settings import Settings
from ourvidz.vram import gpu

TINY_CAP_PX = 128
"""Longest edge that the tiny profile renders."""


class WarmModels:
    """The pipelines of one family, loaded once; implements `Models`."""

    def __init__(self, sdxl: SDXLPipeline) -> None:
        self._sdxl = sdxl

    def warm(self) -> None:
        """Load what this worker serves. `ModelLoadError` says what is wrong."""
        self._sdxl.load()

    def images(self) -> ImagePipeline:
        """The pipeline for SDXL jobs, loaded."""
        self._sdxl.load()
        return self._sdxl

    def reload(self) -> None:
        """Drop everything and load it again."""
        self._sdxl.unload()
        self._sdxl.load()

    def info(self) -> dict[str, Any]:
        """What is loaded, where, and the memory it takes (MiB)."""
        return {"sdxl": self._sdxl.info()}

    def memory(self) -> dict[str, Any]:
        """The memory of this worker's GPU (MiB and GiB); zeros where there is none."""
        return gpu.memory()


def build(settings: Settings, family: str) -> WarmModels:
    """The pipelines of one family, not loaded yet. `ModelLoadError` says which weights are missing."""
    if family != "sdxl":
        raise ModelLoadError(f"This version has no pipelines for {family!r}.")
    checkpoint = find_sdxl(settings.sdxl_model, settings.cache_dir)
    return WarmModels(SDXLPipeline(checkpoint, cap=TINY_CAP_PX if settings.sdxl_model is None else None))
