"""Reads a Wan checkpoint from disk into a diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPVisionModel

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan import original
from ourvidz.pipelines.wan.checkpoint import MODEL_NAMES, WanModel
from ourvidz.pipelines.wan.placement import ComponentName

_OFFLINE = {"use_safetensors": True, "local_files_only": True}
"""Never from the hub, and never pickles, which can run code."""
_DTYPES: dict[ComponentName, torch.dtype] = {"vae": torch.float32, "image_encoder": torch.float32}
"""Components with a dtype of their own: in half precision the VAE does not reproduce a reference exactly."""
_PIPELINE_CLASSES = {
    "t2v": diffusers.WanPipeline,
    "i2v": diffusers.WanImageToVideoPipeline,
    "flf2v": diffusers.WanImageToVideoPipeline,
    "vace": diffusers.WanVACEPipeline,
}


def read_pipeline(checkpoint: Checkpoint, model: WanModel, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a checkpoint of this model, on the CPU. The VAE and the image encoder are
    float32, everything else is `dtype`."""
    if checkpoint.kind == "original":
        return _read_original(checkpoint.path, model, dtype)
    path = checkpoint.path
    components = {"vae": _read_component(diffusers.AutoencoderKLWan, path, "vae", _DTYPES["vae"])}
    if (path / "image_encoder").is_dir():
        image_encoder = _read_component(CLIPVisionModel, path, "image_encoder", _DTYPES["image_encoder"])
        components["image_encoder"] = image_encoder
        # Not used: it requires torchvision. `clip_pixels` takes its place.
        components["image_processor"] = None
    return _PIPELINE_CLASSES[model].from_pretrained(path, **components, dtype=dtype, **_OFFLINE)


def read_again(checkpoint: Checkpoint, name: ComponentName, component: Any, dtype: torch.dtype) -> Any:
    """One component of a checkpoint again, on the CPU, of the class and in the dtype that `component` has in
    its pipeline."""
    if checkpoint.kind == "original":
        if name == "vae":
            return original.read_vae(checkpoint.path)
        read = original.read_transformer if name == "transformer" else original.read_text_encoder
        return read(checkpoint.path, dtype)
    return _read_component(type(component), checkpoint.path, name, _DTYPES.get(name, dtype))


def read_vace_pipeline(
    checkpoint: Checkpoint, text_to_video: Any, dtype: torch.dtype
) -> diffusers.WanVACEPipeline:
    """A VACE pipeline with the transformer of `checkpoint` and all other components of the `text_to_video`
    pipeline. Raises `ModelLoadError` if the two transformers have different inputs."""
    if checkpoint.kind == "original":
        transformer = original.read_transformer(checkpoint.path, dtype)
    else:
        transformer = _read_component(
            diffusers.WanVACETransformer3DModel, checkpoint.path, "transformer", dtype
        )
    for name in ("text_dim", "in_channels"):
        vace_value, text_value = transformer.config[name], text_to_video.transformer.config[name]
        if vace_value != text_value:
            raise ModelLoadError(
                f"{checkpoint.path} has {name} {vace_value}, the text-to-video checkpoint {text_value}: "
                "they do not belong together."
            )
    shared = {
        name: getattr(text_to_video, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")
    }
    return diffusers.WanVACEPipeline(**shared, transformer=transformer)


def share_equal_weights(transformer: Any, other: Any) -> None:
    """Replace those parameters of `transformer` that equal the parameter of the same name in `other` by the
    latter, which frees memory: VACE training may leave the text-to-video weights unchanged."""
    candidates = dict(other.named_parameters())
    for name, weight in list(transformer.named_parameters()):
        candidate = candidates.get(name)
        if candidate is not None and candidate.dtype == weight.dtype and torch.equal(candidate, weight):
            module, _, parameter = name.rpartition(".")
            setattr(transformer.get_submodule(module), parameter, candidate)


def _read_original(folder: Path, model: WanModel, dtype: torch.dtype) -> Any:
    """Read a checkpoint in the Wan release's layout. Raises `ModelLoadError` for image-to-video models."""
    if model in ("i2v", "flf2v"):
        raise ModelLoadError(
            f"{folder} is a {MODEL_NAMES[model]} checkpoint in the layout of the Wan release, whose image "
            "encoder this version does not read: it needs the diffusers layout."
        )
    return _PIPELINE_CLASSES[model](
        tokenizer=original.read_tokenizer(folder),
        text_encoder=original.read_text_encoder(folder, dtype),
        vae=original.read_vae(folder),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=original.read_transformer(folder, dtype),
    )


def _read_component(kind: Any, path: Path, name: str, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(path, subfolder=name, dtype=dtype, **_OFFLINE)
