"""How prompts are read here: the text side of the SDXL checkpoint, found without torch."""

from __future__ import annotations

from pathlib import Path

import ourvidz
from ourvidz.prompts.encoders import TextEncoders, read_encoders
from ourvidz.settings import Settings

PACKAGED = Path(ourvidz.__file__).parent / "checkpoints"


def encoders(chosen: Settings, *, packaged: Path = PACKAGED) -> TextEncoders | None:
    """The text encoders of the checkpoint that SDXL jobs run on; None where this machine has none yet.

    `ModelLoadError` says which of its files is damaged.
    """
    folder = find_folder(chosen, packaged=packaged)
    return None if folder is None else read_encoders(folder)


def find_folder(chosen: Settings, *, packaged: Path = PACKAGED) -> Path | None:
    """Where the tokenizers and configs lie that a worker with these settings would load: where the pipelines
    look. None where there are none; the shim may stand on another machine."""
    if chosen.sdxl_model is None and chosen.profile == "production":
        return None
    model = chosen.sdxl_model or packaged / "tiny-sdxl"
    folder = model.with_name(f"{model.stem}.config") if model.suffix == ".safetensors" else model
    return folder if folder.is_dir() else None
