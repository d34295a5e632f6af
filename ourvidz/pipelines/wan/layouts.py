"""How Wan checkpoints lie on the disk, and which of Wan's models one is. Reads names and JSON, no weights.

Two layouts: the diffusers folder, and the files of the Wan release, which the docs call the original layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ourvidz.errors import ModelLoadError

WanModel = Literal["t2v", "i2v", "flf2v", "vace"]
NAMES: dict[WanModel, str] = {
    "t2v": "text-to-video",
    "i2v": "image-to-video",
    "flf2v": "first-and-last-frame",
    "vace": "VACE",
}
"""What people call them."""

TRANSFORMER = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
VAE = "Wan2.1_VAE.pth"
TOKENIZER = "google/umt5-xxl"
CONFIG = "config.json"

_CONFIGS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
}
_WEIGHTS = {
    "transformer": TRANSFORMER,
    "vae": TRANSFORMER,
    "text_encoder": "model.safetensors",
    "image_encoder": "model.safetensors",
}
"""By component of a diffusers folder; the other components' config is `config.json`."""


@dataclass(frozen=True, slots=True)
class WanFacts:
    """What a checkpoint's config says: which model it is, and how many blocks its transformer has."""

    model: WanModel
    layers: int


def is_original(folder: Path) -> bool:
    """Whether a folder holds files of the original layout and is no diffusers folder."""
    return not (folder / "model_index.json").is_file() and any(
        (folder / name).is_file() for name in (TEXT_ENCODER, VAE)
    )


def missing_of_original(folder: Path) -> list[str]:
    """The files that the original layout needs and `folder` lacks."""
    wanted = (CONFIG, VAE, TEXT_ENCODER, f"{TOKENIZER}/tokenizer.json", f"{TOKENIZER}/tokenizer_config.json")
    missing = [name for name in wanted if not (folder / name).is_file()]
    return missing + list(_missing_weights(folder, TRANSFORMER))


def missing_of_diffusers(folder: Path) -> list[str]:
    """The files that `model_index.json` promises and a diffusers folder lacks."""
    missing = []
    for part, described in _read(folder / "model_index.json").items():
        if part.startswith("_") or not isinstance(described, list) or None in described:
            continue
        config = _CONFIGS.get(part, CONFIG)
        if not (folder / part / config).is_file():
            missing.append(f"{part}/{config}")
        if part in _WEIGHTS:
            missing += [f"{part}/{name}" for name in _missing_weights(folder / part, _WEIGHTS[part])]
    return missing


def shards(folder: Path, weights: str) -> list[Path]:
    """The files that hold one part's weights: one, or those that its index lists."""
    index = folder / f"{weights}.index.json"
    if not index.is_file():
        return [folder / weights]
    listed = _read(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelLoadError(f"{index} lists no weights.")
    return [folder / name for name in sorted(set(listed.values()))]


def facts(folder: Path) -> WanFacts:
    """Which model a checkpoint in either layout is. `ModelLoadError` when its config cannot be read."""
    original = is_original(folder)
    file = folder / CONFIG if original else folder / "transformer" / CONFIG
    config = _read(file)
    try:
        model = _original_model(config) if original else _diffusers_model(config)
        return WanFacts(model, int(config["num_layers"]))
    except (KeyError, TypeError, ValueError) as broken:
        raise ModelLoadError(f"{file} cannot be read: {broken!r}") from None


def _original_model(config: dict[str, Any]) -> WanModel:
    for model in NAMES:
        if config["model_type"] == model:
            return model
    raise ValueError(f"model_type {config['model_type']}")


def _diffusers_model(config: dict[str, Any]) -> WanModel:
    """A VACE transformer has blocks of its own, an image-to-video one reads more channels than it writes, and
    only that for two pictures tells them apart by their place."""
    if config.get("vace_layers"):
        return "vace"
    if config.get("in_channels", 16) == config.get("out_channels", 16):
        return "t2v"
    return "i2v" if config.get("pos_embed_seq_len") is None else "flf2v"


def _missing_weights(folder: Path, weights: str) -> Iterator[str]:
    """A file of another precision (`model.fp16.safetensors`) counts too: the library decides."""
    stem, _, ending = weights.rpartition(".")
    if (folder / f"{weights}.index.json").is_file():
        yield from (file.name for file in shards(folder, weights) if not file.is_file())
    elif not any(folder.glob(f"{stem}*.{ending}")):
        yield weights


def _read(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text())
    except (OSError, ValueError) as broken:
        raise ModelLoadError(f"{file} cannot be read: {broken}") from None
    if not isinstance(read, dict):
        raise ModelLoadError(f"{file} cannot be read: it is no JSON object.")
    return read
