"""Builds the pipelines of a worker from its settings. Imports torch: only a worker's child imports this."""

from __future__ import annotations

from typing import Any

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.base import ImagePipeline, TextPipeline, VideoPipeline
from ourvidz.pipelines.devices import free_memory
from ourvidz.pipelines.loading import checkpoint_mib
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles
from ourvidz.pipelines.sdxl.options import SDXLOptions, parse_lora
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.texts.remote import RemoteTextPipeline, TextServer
from ourvidz.pipelines.texts.residency import ResidencyPolicy, ResidentTextModels, TextModel
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.settings import Settings
from ourvidz.vram import gpu
from ourvidz.vram.device import Device, open_device
from ourvidz.wiring import control
from ourvidz.wiring.shared_device import Pipelines, SharedDevice

TINY_CAP_PX = 128
"""Longest edge (px) of the images of the packaged SDXL checkpoint."""
TINY_WAN_CAP_PX = 64
"""Longest edge (px) of the clips of the packaged Wan checkpoint."""
QWEN_VARIANTS: dict[str, QwenVariant] = {"qwen_instruct": "instruct", "qwen_base": "base"}
"""Variant by the model name that jobs use; the first one is loaded first."""


class WarmModels:
    """The pipelines of one family; implements `Models`."""

    def __init__(
        self,
        sdxl: SDXLPipeline | None = None,
        *,
        wan: WanPipeline | None = None,
        texts: ResidentTextModels | None = None,
        device_share: SharedDevice | None = None,
    ) -> None:
        self._sdxl = sdxl
        self._wan = wan
        self._texts = texts
        self.device_share = device_share
        """The device, where this worker shares one; then jobs hold their model on it."""

    def warm(self) -> None:
        """Load all models of this worker; on a shared device those for which enough memory is free. Raises
        `ModelLoadError`."""
        if self.device_share is not None:
            self.device_share.warm()
            return
        for pipeline in self._pipelines().values():
            pipeline.load()
        if self._texts is not None:
            self._texts.warm()

    def images(self) -> ImagePipeline:
        """The loaded pipeline for SDXL jobs. Raises `ModelLoadError`, also on a worker of another family."""
        if self._sdxl is None:
            raise ModelLoadError("This worker has no pipeline for pictures.")
        self._sdxl.load()
        return self._sdxl

    def videos(self) -> VideoPipeline:
        """The loaded pipeline for Wan jobs. Raises `ModelLoadError`, also on a worker of another family."""
        if self._wan is None:
            raise ModelLoadError("This worker has no pipeline for videos.")
        self._wan.load()
        return self._wan

    def texts(self, model: str) -> TextPipeline:
        """The loaded language model of that name. Raises `ModelLoadError`, also on a worker of another
        family."""
        if self._texts is None:
            raise ModelLoadError("This worker has no language models.")
        return self._texts.get(model)

    def reload(self) -> None:
        """Unload all models and load them again."""
        if self.device_share is not None:
            self.device_share.unload()
            self.device_share.warm()
            return
        for pipeline in self._pipelines().values():
            pipeline.unload()
            pipeline.load()
        if self._texts is not None:
            self._texts.reload()

    def flush(self) -> None:
        """Free device memory that nothing references any more."""
        free_memory()

    def info(self) -> dict[str, Any]:
        """`info()` of each pipeline, by family or by language model."""
        info = {family: pipeline.info() for family, pipeline in self._pipelines().items()}
        return info if self._texts is None else info | self._texts.info()

    def memory(self) -> dict[str, Any]:
        """The memory of this worker's GPU (MiB and GiB); zeros without a GPU."""
        return gpu.memory() if self.device_share is None else gpu.report(**self.device_share.memory())

    def _pipelines(self) -> dict[str, SDXLPipeline | WanPipeline]:
        pipelines = {"sdxl": self._sdxl, "wan": self._wan}
        return {family: pipeline for family, pipeline in pipelines.items() if pipeline is not None}


def build(settings: Settings, family: str) -> WarmModels:
    """The pipelines of one family, not loaded yet. Raises `ModelLoadError` naming missing files or
    settings."""
    device = open_device(settings, family)
    if family == "wan":
        wan = _build_wan(settings)
        parts: Pipelines = {"wan": (wan, checkpoint_mib(wan.checkpoint, wan.dtype))}
        return WarmModels(wan=wan, device_share=_share(settings, family, device, parts))
    if family == "chat":
        texts = _build_text_models(settings)
        parts = {
            name: (model.pipeline, model.needs_mib)
            for name, model in texts.items()
            if isinstance(model.pipeline, QwenPipeline)
        }
        # On a shared device the jobs' grants decide what is resident.
        policy: ResidencyPolicy = "always" if device is not None else settings.qwen_together
        resident = ResidentTextModels(texts, policy=policy, free_mib=gpu.free_mib)
        return WarmModels(texts=resident, device_share=_share(settings, family, device, parts))
    if family != "sdxl":
        raise ModelLoadError(f"There are no pipelines for {family!r}.")
    sdxl = _build_sdxl(settings)
    parts = {"sdxl": (sdxl, checkpoint_mib(sdxl.checkpoint, sdxl.dtype))}
    return WarmModels(sdxl, device_share=_share(settings, family, device, parts))


def _share(
    settings: Settings, family: str, device: Device | None, pipelines: Pipelines
) -> SharedDevice | None:
    if device is None:
        return None
    return SharedDevice(settings, family, control.current().ledger, device, pipelines)


def _build_sdxl(settings: Settings) -> SDXLPipeline:
    """The SDXL pipeline of the settings. Raises `ModelLoadError`."""
    if settings.sdxl_model is None and settings.profile == "production":
        raise ModelLoadError("The production profile has no SDXL checkpoint: set OURVIDZ_SDXL_MODEL.")
    checkpoint = find_sdxl(settings.sdxl_model)
    cap = TINY_CAP_PX if settings.sdxl_model is None else None
    return SDXLPipeline(checkpoint, cap=cap, options=sdxl_options(settings))


def _build_wan(settings: Settings) -> WanPipeline:
    """The Wan pipeline of the settings, with its VACE checkpoint if one is set. Raises `ModelLoadError`."""
    if settings.wan_model is None and settings.profile == "production":
        raise ModelLoadError("The production profile has no Wan checkpoint: set OURVIDZ_WAN_MODEL.")
    checkpoint = find_wan(settings.wan_model, expected="t2v")
    vace_folder = settings.wan_vace_model
    vace = None if vace_folder is None else find_wan(vace_folder, expected="vace")
    cap = TINY_WAN_CAP_PX if settings.wan_model is None else None
    return WanPipeline(checkpoint, vace=vace, cap=cap, options=wan_options(settings))


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


def _build_text_models(settings: Settings) -> dict[str, TextModel]:
    return {name: _build_text(settings, variant) for name, variant in QWEN_VARIANTS.items()}


def _build_text(settings: Settings, variant: QwenVariant) -> TextModel:
    """The text model of a Qwen variant: a remote server, or a local checkpoint. Raises `ModelLoadError`."""
    url = settings.qwen_instruct_url if variant == "instruct" else settings.qwen_base_url
    name = settings.qwen_instruct_name if variant == "instruct" else settings.qwen_base_name
    if url is not None:
        return TextModel(RemoteTextPipeline(TextServer(url, name, settings.qwen_key), variant), needs_mib=0)
    if settings.qwen_model is None and settings.profile == "production":
        variables = f"OURVIDZ_QWEN_MODEL or OURVIDZ_QWEN_{variant.upper()}_URL"
        raise ModelLoadError(f"The production profile has no Qwen checkpoint ({variant}): set {variables}.")
    checkpoint = find_qwen(settings.qwen_model, variant)
    pipeline = QwenPipeline(checkpoint, variant)
    return TextModel(pipeline, checkpoint_mib(checkpoint, pipeline.dtype))


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
    )
