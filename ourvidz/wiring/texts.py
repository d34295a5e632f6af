"""Builds the language models from the settings. Imports torch."""

from __future__ import annotations

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.loading import checkpoint_mib
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.texts.remote import RemoteTextPipeline, TextServer
from ourvidz.pipelines.texts.residency import ResidencyPolicy, ResidentTextModels, TextModel
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal
from ourvidz.vram import gpu
from ourvidz.wiring.model_parts import Pipelines, Whole

QWEN_VARIANTS: dict[str, QwenVariant] = {"qwen_instruct": "instruct", "qwen_base": "base"}
"""Variant by the model name that jobs use; the first one is loaded first."""


def build(settings: Settings) -> dict[str, TextModel]:
    """The language models of the settings, by the names that jobs use. Raises `ModelLoadError`."""
    return {name: _build_text(settings, variant) for name, variant in QWEN_VARIANTS.items()}


def residents(models: dict[str, TextModel], policy: ResidencyPolicy) -> ResidentTextModels:
    """The models that are loaded together as the policy says."""
    return ResidentTextModels(models, policy=policy, free_mib=gpu.free_mib)


def local_pipelines(models: dict[str, TextModel]) -> Pipelines:
    """The pipelines of the models that are loaded into this process, with the memory that they need (MiB)."""
    return {
        name: Whole(model.pipeline, model.needs_mib)
        for name, model in models.items()
        if isinstance(model.pipeline, QwenPipeline)
    }


def _build_text(settings: Settings, variant: QwenVariant) -> TextModel:
    """The text model of a Qwen variant: a remote server, or a local checkpoint. Raises `ModelLoadError`."""
    url = settings.qwen_instruct_url if variant == "instruct" else settings.qwen_base_url
    name = settings.qwen_instruct_name if variant == "instruct" else settings.qwen_base_name
    if url is not None:
        return TextModel(
            RemoteTextPipeline(TextServer(url, name, reveal(settings.qwen_key)), variant), needs_mib=0
        )
    if settings.qwen_model is None and settings.profile == "production":
        variables = f"OURVIDZ_QWEN_MODEL or OURVIDZ_QWEN_{variant.upper()}_URL"
        raise ModelLoadError(f"The production profile has no Qwen checkpoint ({variant}): set {variables}.")
    checkpoint = find_qwen(settings.qwen_model, variant)
    pipeline = QwenPipeline(checkpoint, variant, compiled=settings.qwen_compile)
    return TextModel(pipeline, checkpoint_mib(checkpoint, pipeline.dtype))
