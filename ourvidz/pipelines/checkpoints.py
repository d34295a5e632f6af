"""Checkpoints on the local disk. Weights are never downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import ourvidz
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import weight_kinds

CheckpointKind = Literal["folder", "single file", "original", "tiny"]

PACKAGED = Path(ourvidz.__file__).parent / "checkpoints"
"""Folder of the trained tiny checkpoints that ship with the package."""
SDXL_BASE_CONFIG = "sdxl-base-config"
"""Name of the folder beside them with the configs of SDXL base 1.0. It has no vocabulary."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model's weights on disk.

    `path` is a folder in the diffusers or transformers layout, a folder with the files of the Wan release
    (`original`), or one `.safetensors` file. `config` is the folder of JSON configs and tokenizers that a
    single file needs, `vae` a file or folder whose VAE replaces that of the checkpoint. `collection` is the
    parent folder, if that one holds the checksums and the model card of several checkpoints.
    """

    path: Path
    kind: CheckpointKind
    config: Path | None = None
    vae: Path | None = None
    collection: Path | None = None

    @property
    def name(self) -> str:
        """File or folder name without suffix, prefixed with the collection's name if there is one."""
        if self.collection is not None:
            return f"{self.collection.name}/{self.path.name}"
        return self.path.stem if self.kind == "single file" else self.path.name

    @property
    def root(self) -> Path:
        """The folder or file that the checksums cover and that holds the model card."""
        return self.collection or self.path

    def variant(self, *, half: bool) -> str | None:
        """The variant of a diffusers folder's files that is loaded: `fp16` if it has only those, or has them
        for all models and the dtype of the weights is a `half` one; else None. They are half as large to
        read, and the others would be rounded to them."""
        files = {name: _has_variants(self.path / name) for name in _MODELS if (self.path / name).is_dir()}
        if "unet" not in files or not files["unet"].fp16:
            return None
        complete = all(present.fp16 for present in files.values())
        return "fp16" if not files["unet"].full or (half and complete) else None


class _Variants(NamedTuple):
    """Whether a folder has weights under their plain names, and as the variant `fp16`."""

    full: bool
    fp16: bool


_MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Folders with weights of an SDXL checkpoint."""


def _has_variants(folder: Path) -> _Variants:
    names = [file.name for file in folder.glob("*.safetensors")]
    return _Variants(any(".fp16" not in name for name in names), any(".fp16" in name for name in names))


def require_diffusers_folder(folder: Path) -> Path:
    """Return `folder`. Raises `ModelLoadError` unless it exists and has a `model_index.json`; a file in its
    place is named by its kind."""
    if folder.is_file():
        kind = weight_kinds.KIND_NAMES[weight_kinds.read_kind(folder)]
        raise ModelLoadError(f"{folder} is {kind}, not a checkpoint folder.")
    if not folder.is_dir():
        raise ModelLoadError(f"There is no checkpoint folder {folder}.")
    if not (folder / "model_index.json").is_file():
        files = sorted(file.name for file in folder.glob("*.safetensors"))
        hint = f" For a checkpoint that is one file, name the file: {files[0]}." if files else ""
        raise ModelLoadError(f"{folder} has no model_index.json: it is not in the diffusers layout.{hint}")
    return folder


def sdxl_config_folder(model: Path, config: Path | None = None, *, packaged: Path = PACKAGED) -> Path:
    """The folder of configs and tokenizers of the SDXL checkpoint at `model`: that folder itself, or of a
    single file `config`, else `<stem>.config/` beside it, else that of SDXL base. It may not exist."""
    if model.suffix != ".safetensors":
        return model
    beside = model.with_name(f"{model.stem}.config")
    return config or (beside if beside.is_dir() else packaged / SDXL_BASE_CONFIG)
