"""Where weights come from: local files only, the hub is never asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ourvidz
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checksums import CHECKSUMS
from ourvidz.pipelines.wan import layouts
from ourvidz.pipelines.wan.layouts import WanModel

CheckpointKind = Literal["folder", "single file", "original", "tiny"]
QwenVariant = Literal["instruct", "base"]

PACKAGED = Path(ourvidz.__file__).parent / "checkpoints"
"""Trained tiny checkpoints that ship with the project."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on this machine's disk.

    `path` is a folder in the diffusers or the transformers layout, one with the files of the Wan release
    (`original`), or one `.safetensors` file; `config` is the folder of JSON configs and tokenizers that a
    single file needs beside its weights. `within` is the folder above, where that one has the checksums.
    """

    path: Path
    kind: CheckpointKind
    config: Path | None = None
    within: Path | None = None

    @property
    def name(self) -> str:
        """What the checkpoint is called: its file name without the ending."""
        if self.within is not None:
            return f"{self.within.name}/{self.path.name}"
        return self.path.stem if self.kind == "single file" else self.path.name

    @property
    def root(self) -> Path:
        """What its checksums cover, and where its model card is."""
        return self.within or self.path

    @property
    def variant(self) -> str | None:
        """`fp16` for a folder that holds only the half-precision files."""
        weights = self.path / "unet" / "diffusion_pytorch_model.safetensors"
        whole = weights.is_file() or weights.with_name(f"{weights.name}.index.json").is_file()
        return "fp16" if not whole and any(weights.parent.glob("*.fp16*.safetensors")) else None


def find_sdxl(model: Path | None, *, config: Path | None = None, packaged: Path = PACKAGED) -> Checkpoint:
    """The SDXL checkpoint at `model`; without one the packaged tiny one.

    `config` is looked for beside a single file as `<stem>.config/` unless given. `ModelLoadError` says what
    is missing.
    """
    if model is None:
        return Checkpoint(_diffusers_folder(packaged / "tiny-sdxl"), "tiny")
    if model.is_dir():
        return Checkpoint(_diffusers_folder(model), "folder")
    if not model.is_file():
        raise ModelLoadError(f"There is no SDXL checkpoint at {model}.")
    if model.suffix != ".safetensors":
        raise ModelLoadError(f"{model} is not a .safetensors file; other formats can run code when loaded.")
    return Checkpoint(model, "single file", _single_file_config(model, config))


def find_wan(
    model: Path | None, *, expected: WanModel | None = None, packaged: Path = PACKAGED
) -> Checkpoint:
    """The Wan checkpoint at `model`, a diffusers folder or the files of the Wan release; without one the
    packaged tiny one. `ModelLoadError` names every file that is missing, or says that it is another of Wan's
    models than the `expected` one."""
    folder = model or packaged / "tiny-wan"
    if layouts.is_original(folder):
        kind: CheckpointKind = "original"
        layout, missing = "the layout of the Wan release", layouts.missing_of_original(folder)
    else:
        kind = "tiny" if model is None else "folder"
        layout, missing = "the diffusers layout", layouts.missing_of_diffusers(_diffusers_folder(folder))
    if missing:
        raise ModelLoadError(f"{folder} is in {layout} and lacks {', '.join(missing)}.")
    if expected is not None and (found := layouts.facts(folder).model) != expected:
        names = layouts.NAMES
        raise ModelLoadError(f"{folder} is a {names[found]} checkpoint, not a {names[expected]} one.")
    return Checkpoint(folder, kind)


def find_qwen(model: Path | None, variant: QwenVariant, *, packaged: Path = PACKAGED) -> Checkpoint:
    """The Qwen checkpoint `variant` under `model`, a folder of transformers folders by that name; without one
    the packaged tiny one.

    `ModelLoadError` says what is missing.
    """
    family = model or packaged / "tiny-qwen"
    folder = family / variant
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json: it is not in the transformers layout.")
    within = family if (family / CHECKSUMS).is_file() else None
    return Checkpoint(folder, "tiny" if model is None else "folder", within=within)


def _diffusers_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelLoadError(f"There is no checkpoint folder {folder}.")
    if not (folder / "model_index.json").is_file():
        raise ModelLoadError(f"{folder} has no model_index.json: it is not in the diffusers layout.")
    return folder


def _single_file_config(model: Path, config: Path | None) -> Path:
    folder = config or model.with_name(f"{model.stem}.config")
    if not folder.is_dir():
        raise ModelLoadError(
            f"{model.name} holds weights only: its configs and tokenizers are expected in {folder} "
            "(a diffusers folder of the same model; its weights are not needed)."
        )
    wanted = ("model_index.json", *(f"{part}/{file}" for part, file in _CONFIG_FILES))
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise ModelLoadError(f"{folder} lacks {', '.join(missing)}, which {model.name} needs.")
    return folder


_CONFIG_FILES = (
    ("scheduler", "scheduler_config.json"),
    ("text_encoder", "config.json"),
    ("text_encoder_2", "config.json"),
    ("tokenizer", "tokenizer_config.json"),
    ("tokenizer_2", "tokenizer_config.json"),
    ("unet", "config.json"),
    ("vae", "config.json"),
)
