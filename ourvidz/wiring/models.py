"""The warm pipelines of a worker. Reaches torch: only a worker's child imports this."""

from __future__ import annotations

from typing import Any

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.base import ImagePipeline, TextPipeline, VideoPipeline
from ourvidz.pipelines.devices import free_memory
from ourvidz.pipelines.loading import weight_files_mib
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles
from ourvidz.pipelines.sdxl.options import SDXLOptions, parse_lora
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.texts.remote import RemoteTextPipeline, TextServer
from ourvidz.pipelines.texts.residency import ResidentTextModels, TextModel
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.settings import Settings
from ourvidz.vram import gpu

TINY_CAP_PX = 128
"""Longest edge that the tiny profile renders."""
TINY_WAN_CAP_PX = 64
"""And of its clips."""
QWEN: dict[str, QwenVariant] = {"qwen_instruct": "instruct", "qwen_base": "base"}
"""The language models as jobs call them; the first is loaded first."""


class WarmModels:
    """The pipelines of one family, loaded once; implements `Models`."""

    def __init__(
        self,
        sdxl: SDXLPipeline | None = None,
        *,
        wan: WanPipeline | None = None,
        texts: ResidentTextModels | None = None,
    ) -> None:
        self._sdxl = sdxl
        self._wan = wan
        self._texts = texts

    def warm(self) -> None:
        """Load what this worker serves. `ModelLoadError` says what is wrong."""
        for pipeline in self._served().values():
            pipeline.load()
        if self._texts is not None:
            self._texts.warm()

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

    def texts(self, model: str) -> TextPipeline:
        """The language model of that name, loaded. `ModelLoadError` on a worker of another family."""
        if self._texts is None:
            raise ModelLoadError("This worker has no language models.")
        return self._texts.get(model)

    def reload(self) -> None:
        """Drop everything and load it again."""
        for pipeline in self._served().values():
            pipeline.unload()
            pipeline.load()
        if self._texts is not None:
            self._texts.reload()

    def flush(self) -> None:
        """Give memory that nothing refers to any more back to the device."""
        free_memory()

    def info(self) -> dict[str, Any]:
        """What is loaded, where, and the memory it takes (MiB)."""
        told = {family: pipeline.info() for family, pipeline in self._served().items()}
        return told if self._texts is None else told | self._texts.info()

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
    if family == "chat":
        return WarmModels(texts=_texts(settings))
    if family != "sdxl":
        raise ModelLoadError(f"There are no pipelines for {family!r}.")
    return WarmModels(_sdxl(settings))


def _sdxl(settings: Settings) -> SDXLPipeline:
    if settings.sdxl_model is None and settings.profile == "production":
        raise ModelLoadError("The production profile has no SDXL checkpoint: set OURVIDZ_SDXL_MODEL.")
    checkpoint = find_sdxl(settings.sdxl_model)
    cap = TINY_CAP_PX if settings.sdxl_model is None else None
    return SDXLPipeline(checkpoint, cap=cap, options=sdxl_options(settings))


def _wan(settings: Settings) -> WanPipeline:
    if settings.wan_model is None and settings.profile == "production":
        raise ModelLoadError("The production profile has no Wan checkpoint: set OURVIDZ_WAN_MODEL.")
    checkpoint = find_wan(settings.wan_model, expected="t2v")
    given = settings.wan_vace_model
    vace = None if given is None else find_wan(given, expected="vace")
    cap = TINY_WAN_CAP_PX if settings.wan_model is None else None
    return WanPipeline(checkpoint, vace=vace, cap=cap, options=wan_options(settings))


def wan_options(settings: Settings) -> WanOptions:
    """How the operator wants Wan to run."""
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


def _texts(settings: Settings) -> ResidentTextModels:
    texts = {name: _text(settings, variant) for name, variant in QWEN.items()}
    return ResidentTextModels(texts, policy=settings.qwen_together, free_mib=gpu.free_mib)


def _text(settings: Settings, variant: QwenVariant) -> TextModel:
    url = settings.qwen_instruct_url if variant == "instruct" else settings.qwen_base_url
    name = settings.qwen_instruct_name if variant == "instruct" else settings.qwen_base_name
    if url is not None:
        return TextModel(RemoteTextPipeline(TextServer(url, name, settings.qwen_key), variant), needs_mib=0)
    if settings.qwen_model is None and settings.profile == "production":
        needed = f"OURVIDZ_QWEN_MODEL or OURVIDZ_QWEN_{variant.upper()}_URL"
        raise ModelLoadError(f"The production profile has no Qwen checkpoint ({variant}): set {needed}.")
    checkpoint = find_qwen(settings.qwen_model, variant)
    return TextModel(QwenPipeline(checkpoint, variant), weight_files_mib(checkpoint.path))


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
        loras=tuple(parse_lora(entry) for entry in settings.sdxl_loras),
        job_loras=tuple(parse_lora(entry) for entry in settings.sdxl_job_loras),
        ip_adapter=AdapterFiles(adapter, encoder) if adapter and encoder else None,
        previews=settings.previews,
    )
