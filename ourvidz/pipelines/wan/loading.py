"""From a Wan checkpoint on the disk to the diffusers pipeline that holds its parts."""

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

_OFFLINE = {"use_safetensors": True, "local_files_only": True}
"""No hub, and no pickles: they can run code."""
_CLASSES = {
    "t2v": diffusers.WanPipeline,
    "i2v": diffusers.WanImageToVideoPipeline,
    "flf2v": diffusers.WanImageToVideoPipeline,
    "vace": diffusers.WanVACEPipeline,
}


def read(checkpoint: Checkpoint, model: WanModel, dtype: torch.dtype) -> Any:
    """The pipeline of the class that the checkpoint is for, on the CPU."""
    if checkpoint.kind == "original":
        return _read_original(checkpoint.path, model, dtype)
    path = checkpoint.path
    # In half precision a reference does not come back as it was.
    parts = {"vae": _part(diffusers.AutoencoderKLWan, path, "vae", torch.float32)}
    if (path / "image_encoder").is_dir():
        parts["image_encoder"] = _part(CLIPVisionModel, path, "image_encoder", torch.float32)
        # The encoder's pictures are made without it: this one needs torchvision.
        parts["image_processor"] = None
    return _CLASSES[model].from_pretrained(path, **parts, dtype=dtype, **_OFFLINE)


def read_vace(checkpoint: Checkpoint, beside: Any, dtype: torch.dtype) -> diffusers.WanVACEPipeline:
    """A VACE pipeline that shares everything but its transformer with a text-to-video pipeline.
    `ModelLoadError` when the two do not belong together."""
    if checkpoint.kind == "original":
        transformer = original.read_transformer(checkpoint.path, dtype)
    else:
        transformer = _part(diffusers.WanVACETransformer3DModel, checkpoint.path, "transformer", dtype)
    for name in ("text_dim", "in_channels"):
        theirs, ours = transformer.config[name], beside.transformer.config[name]
        if theirs != ours:
            raise ModelLoadError(
                f"{checkpoint.path} has {name} {theirs}, the text-to-video checkpoint {ours}: "
                "they do not belong together."
            )
    shared = {name: getattr(beside, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    return diffusers.WanVACEPipeline(**shared, transformer=transformer)


def share(transformer: Any, other: Any) -> None:
    """Let two transformers have one copy of the weights that are equal in both: VACE was trained beside the
    text-to-video model, whose own weights it may have left as they were."""
    known = dict(other.named_parameters())
    for name, weight in list(transformer.named_parameters()):
        twin = known.get(name)
        if twin is not None and twin.dtype == weight.dtype and torch.equal(twin, weight):
            module, _, parameter = name.rpartition(".")
            setattr(transformer.get_submodule(module), parameter, twin)


def _read_original(folder: Path, model: WanModel, dtype: torch.dtype) -> Any:
    if model in ("i2v", "flf2v"):
        raise ModelLoadError(
            f"{folder} is a {MODEL_NAMES[model]} checkpoint in the layout of the Wan release, whose image "
            "encoder this version does not read: it needs the diffusers layout."
        )
    return _CLASSES[model](
        tokenizer=original.read_tokenizer(folder),
        text_encoder=original.read_text_encoder(folder, dtype),
        vae=original.read_vae(folder),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=original.read_transformer(folder, dtype),
    )


def _part(kind: Any, path: Path, name: str, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(path, subfolder=name, dtype=dtype, **_OFFLINE)
