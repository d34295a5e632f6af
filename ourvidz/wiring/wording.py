"""How prompts are read here: the text side of the SDXL checkpoint, found without torch."""

from __future__ import annotations

from pathlib import Path

import ourvidz
from ourvidz.prompts.encoders import TextEncoders, read_encoders
from ourvidz.settings import Settings

PACKAGED = Path(ourvidz.__file__).parent / "checkpoints"
BUILT = "tiny-sdxl-random-v*"


def encoders(chosen: Settings, *, packaged: Path = PACKAGED) -> TextEncoders | None:
    """The text encoders of the checkpoint that SDXL jobs run on; None where this machine has none yet.

    `ModelLoadError` says which of its files is damaged.
    """
    folder = find_folder(chosen, packaged=packaged)
    return None if folder is None else read_encoders(folder)


def find_folder(chosen: Settings, *, packaged: Path = PACKAGED) -> Path | None:
    """Where the tokenizers and configs lie that a worker with these settings would load.

    The checkpoint is looked for where the pipelines look, but nothing is built: the tiny one with random
    weights appears when a worker first starts.
    """
    model = chosen.sdxl_model
    if model is not None:
        folder = model if model.is_dir() else model.with_name(f"{model.stem}.config")
        return folder if folder.is_dir() else None
    shipped = packaged / "tiny-sdxl"
    if (shipped / "model_index.json").is_file():
        return shipped
    return max(chosen.cache_dir.glob(BUILT), key=_version, default=None)


def _version(folder: Path) -> int:
    digits = folder.name.rpartition("-v")[2]
    return int(digits) if digits.isdecimal() else -1
