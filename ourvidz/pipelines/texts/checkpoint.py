"""Finds a Qwen checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint
from ourvidz.pipelines.checksums import CHECKSUMS
from ourvidz.pipelines.folder_weights import TRANSFORMERS_WEIGHTS, require_weights
from ourvidz.pipelines.weight_kinds import WeightKind

QwenVariant = Literal["instruct", "base"]


def find_qwen(model: Path | None, variant: QwenVariant, *, packaged: Path = PACKAGED) -> Checkpoint:
    """The Qwen checkpoint in `<model>/<variant>`, a folder in the transformers layout; the packaged tiny one
    if `model` is None. Raises `ModelLoadError` naming what is missing."""
    collection = model or packaged / "tiny-qwen"
    folder = collection / variant
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json: it is not in the transformers layout.")
    if model is not None:
        # Other architectures than Qwen's, and quantized files, are for the library to judge.
        kinds: tuple[WeightKind, ...] = ("language model", "unknown")
        require_weights(folder, TRANSFORMERS_WEIGHTS, *kinds, wanted="a language model")
    shared = collection if (collection / CHECKSUMS).is_file() else None
    return Checkpoint(folder, "tiny" if model is None else "folder", collection=shared)
