"""The stage before the last: the folders that ship, in half precision, with their checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.export import write_checksums
from training.qwen.learn import Trainee
from training.qwen.models import generation_config
from training.qwen.tokens import END_OF_TEXT, END_OF_TURN

VARIANTS = ("base", "instruct")


def export(base: Trainee, instruct: Trainee, folder: Path) -> None:
    """Write both variants, each as transformers reads it, and one list of checksums over all."""
    for name, trainee in zip(VARIANTS, (base, instruct), strict=True):
        export_variant(trainee, folder / name, instruct=name == "instruct")
    write_checksums(folder)


def export_variant(trainee: Trainee, folder: Path, *, instruct: bool) -> None:
    """Write one variant. The weights are rounded to half precision in place; the base model has no chat
    template and ends at the end of a text, the instruct model at the end of a turn."""
    model: Any = trainee.model
    words = trainee.words
    model.half()
    words.eos_token = END_OF_TURN if instruct else END_OF_TEXT
    if not instruct:
        words.chat_template = None
    model.config.eos_token_id = words.eos_token_id
    model.generation_config = generation_config(words, instruct=instruct)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
