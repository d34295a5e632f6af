"""Export of both variants in half precision, with checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.export import write_checksums
from training.qwen.models import generation_config
from training.qwen.tokenization import END_OF_TEXT, END_OF_TURN
from training.qwen.trainer import TrainedModel

VARIANTS = ("base", "instruct")


def export(base: TrainedModel, instruct: TrainedModel, folder: Path) -> None:
    """Write both variants as transformers loads them, each into a folder of its name, and one list of
    checksums over both."""
    for name, trained in zip(VARIANTS, (base, instruct), strict=True):
        export_variant(trained, folder / name, instruct=name == "instruct")
    write_checksums(folder)


def export_variant(trained: TrainedModel, folder: Path, *, instruct: bool) -> None:
    """Write one variant; its weights are rounded to half precision in place.

    The base model has no chat template and stops at the end of a text, the instruct model stops at the end of
    a turn.
    """
    model: Any = trained.model
    tokenizer = trained.tokenizer
    model.half()
    tokenizer.eos_token = END_OF_TURN if instruct else END_OF_TEXT
    if not instruct:
        tokenizer.chat_template = None
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = generation_config(tokenizer, instruct=instruct)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
