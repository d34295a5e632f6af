"""Finds a Wan checkpoint on disk and identifies its model. Reads file names, JSON and the headers of weights.

There are two layouts: the diffusers folder, and the files of the Wan release (the "original" layout).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import weight_kinds
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint, CheckpointKind, require_diffusers_folder
from ourvidz.pipelines.folder_weights import DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS, require_weights
from ourvidz.pipelines.weight_kinds import WeightKind

WanModel = Literal["t2v", "i2v", "flf2v", "vace"]
MODEL_NAMES: dict[WanModel, str] = {
    "t2v": "text-to-video",
    "i2v": "image-to-video",
    "flf2v": "first-and-last-frame",
    "vace": "VACE",
}
"""Model names for messages."""

TRANSFORMER = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
VAE = "Wan2.1_VAE.pth"
TOKENIZER = "google/umt5-xxl"
CONFIG = "config.json"
"""File names of the original layout."""

_CONFIGS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
}
"""Config file by component of a diffusers folder; `config.json` for the components not listed."""
_WEIGHTS = {
    "transformer": TRANSFORMER,
    "vae": TRANSFORMER,
    "text_encoder": "model.safetensors",
    "image_encoder": "model.safetensors",
}
"""Weight file by component of a diffusers folder."""
_KINDS: dict[str, tuple[str, WeightKind]] = {
    "vae": (DIFFUSERS_WEIGHTS, "wan vae"),
    "text_encoder": (TRANSFORMERS_WEIGHTS, "t5 text encoder"),
    "image_encoder": (TRANSFORMERS_WEIGHTS, "clip image encoder"),
}
"""Name of the weight files and what they must hold, by component of a diffusers folder."""


@dataclass(frozen=True, slots=True)
class WanModelInfo:
    """Which model a checkpoint is, and the number of its transformer blocks."""

    model: WanModel
    layers: int


def find_wan(
    model: Path | None, *, expected: WanModel | None = None, packaged: Path = PACKAGED
) -> Checkpoint:
    """The Wan checkpoint in the folder `model`, in either layout; the packaged tiny one if `model` is None.

    Raises `ModelLoadError` naming every missing file, or if the checkpoint is not the `expected` model.
    """
    folder = model or packaged / "tiny-wan"
    if is_original(folder):
        kind: CheckpointKind = "original"
        layout, missing = "the layout of the Wan release", missing_original_files(folder)
    else:
        kind = "tiny" if model is None else "folder"
        layout, missing = "the diffusers layout", missing_diffusers_files(require_diffusers_folder(folder))
    if missing:
        raise ModelLoadError(f"{folder} is in {layout} and lacks {', '.join(missing)}.")
    if model is not None:
        _check_weights(folder, original=kind == "original")
    if expected is not None and (actual := read_model_info(folder).model) != expected:
        raise ModelLoadError(
            f"{folder} is a {MODEL_NAMES[actual]} checkpoint, not a {MODEL_NAMES[expected]} one."
        )
    return Checkpoint(folder, kind)


def _check_weights(folder: Path, *, original: bool) -> None:
    """Raise `ModelLoadError` for safetensors files of another kind than their component."""
    if original:
        _check_transformer(folder, folder)
        return
    components = _read_json(folder / "model_index.json")
    if components.get("transformer"):
        _check_transformer(folder, folder / "transformer")
    for name, (stem, kind) in _KINDS.items():
        if name in components and (folder / name).is_dir():
            require_weights(folder / name, stem, kind, wanted=weight_kinds.KIND_NAMES[kind])


def _check_transformer(folder: Path, weights: Path) -> None:
    kind: WeightKind = "wan vace" if read_model_info(folder).model == "vace" else "wan transformer"
    require_weights(weights, DIFFUSERS_WEIGHTS, kind, wanted=weight_kinds.KIND_NAMES[kind])


def is_original(folder: Path) -> bool:
    """Whether `folder` holds files of the original layout and no `model_index.json`."""
    return not (folder / "model_index.json").is_file() and any(
        (folder / name).is_file() for name in (TEXT_ENCODER, VAE)
    )


def missing_original_files(folder: Path) -> list[str]:
    """The files that the original layout requires and `folder` lacks."""
    required = (
        CONFIG,
        VAE,
        TEXT_ENCODER,
        f"{TOKENIZER}/tokenizer.json",
        f"{TOKENIZER}/tokenizer_config.json",
    )
    missing = [name for name in required if not (folder / name).is_file()]
    return missing + list(_missing_weights(folder, TRANSFORMER))


def missing_diffusers_files(folder: Path) -> list[str]:
    """The files that the `model_index.json` of a diffusers folder requires and `folder` lacks."""
    missing = []
    for component, classes in _read_json(folder / "model_index.json").items():
        if component.startswith("_") or not isinstance(classes, list) or None in classes:
            continue
        config = _CONFIGS.get(component, CONFIG)
        if not (folder / component / config).is_file():
            missing.append(f"{component}/{config}")
        if component in _WEIGHTS:
            weights = _missing_weights(folder / component, _WEIGHTS[component])
            missing += [f"{component}/{name}" for name in weights]
    return missing


def weight_files(folder: Path, weights: str) -> list[Path]:
    """The files of one component's weights: `weights` itself, or the shards that its index lists."""
    index = folder / f"{weights}.index.json"
    if not index.is_file():
        return [folder / weights]
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index} lists no weights.")
    return [folder / name for name in sorted(set(weight_map.values()))]


def read_model_info(folder: Path) -> WanModelInfo:
    """Read the transformer's config, in either layout. Raises `ModelLoadError` if it is not readable."""
    original = is_original(folder)
    file = folder / CONFIG if original else folder / "transformer" / CONFIG
    config = _read_json(file)
    try:
        model = _original_model(config) if original else _diffusers_model(config)
        return WanModelInfo(model, int(config["num_layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error!r}") from None


def _original_model(config: dict[str, Any]) -> WanModel:
    for model in MODEL_NAMES:
        if config["model_type"] == model:
            return model
    raise ValueError(f"model_type {config['model_type']}")


def _diffusers_model(config: dict[str, Any]) -> WanModel:
    """VACE has `vace_layers`; image-to-video models have more input than output channels, and the one for
    first and last frame also has position embeddings for two images."""
    if config.get("vace_layers"):
        return "vace"
    if config.get("in_channels", 16) == config.get("out_channels", 16):
        return "t2v"
    return "i2v" if config.get("pos_embed_seq_len") is None else "flf2v"


def _missing_weights(folder: Path, weights: str) -> Iterator[str]:
    """Accepts files of another precision (`model.fp16.safetensors`) too: the library picks one."""
    stem, _, suffix = weights.rpartition(".")
    if (folder / f"{weights}.index.json").is_file():
        yield from (file.name for file in weight_files(folder, weights) if not file.is_file())
    elif not any(folder.glob(f"{stem}*.{suffix}")):
        yield weights


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file} cannot be read: it is no JSON object.")
    return content
