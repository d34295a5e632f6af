"""Finds an SDXL checkpoint on disk: a diffusers folder or a single `.safetensors` file with its configs."""

from __future__ import annotations

from pathlib import Path

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint, require_diffusers_folder

_CONFIG_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
)
"""Files that a single-file checkpoint needs in its config folder."""


def find_sdxl(model: Path | None, *, config: Path | None = None, packaged: Path = PACKAGED) -> Checkpoint:
    """The SDXL checkpoint at `model`, or the packaged tiny one if `model` is None.

    `config` is the config folder of a single file; the default is `<stem>.config/` beside it. Raises
    `ModelLoadError` naming what is missing.
    """
    if model is None:
        return Checkpoint(require_diffusers_folder(packaged / "tiny-sdxl"), "tiny")
    if model.is_dir():
        return Checkpoint(require_diffusers_folder(model), "folder")
    if not model.is_file():
        raise ModelLoadError(f"There is no SDXL checkpoint at {model}.")
    if model.suffix != ".safetensors":
        raise ModelLoadError(f"{model} is not a .safetensors file; other formats can run code when loaded.")
    return Checkpoint(model, "single file", _single_file_config(model, config))


def _single_file_config(model: Path, config: Path | None) -> Path:
    """The config folder of a single file. Raises `ModelLoadError` if files are missing."""
    folder = config or model.with_name(f"{model.stem}.config")
    if not folder.is_dir():
        raise ModelLoadError(
            f"{model.name} holds weights only: its configs and tokenizers are expected in {folder} "
            "(a diffusers folder of the same model; its weights are not needed)."
        )
    missing = [name for name in _CONFIG_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelLoadError(f"{folder} lacks {', '.join(missing)}, which {model.name} needs.")
    return folder
