from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.prompts.encoders import read_encoders
from ourvidz.prompts.weights import literal, parse


@pytest.fixture
def checkpoint(slow_tokenizer_folder: Path) -> Path:
    """The tokenizers and text encoder configs of a checkpoint, without weights."""
    root = slow_tokenizer_folder.parent
    copytree(slow_tokenizer_folder, root / "tokenizer_2")
    for name, width in (("text_encoder", 768), ("text_encoder_2", 1280)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({"hidden_size": width, "projection_dim": width}))
    return root


def test_shapes_have_the_chunks_of_the_longer_prompt(checkpoint: Path) -> None:
    """Prompt and negative prompt are padded to the longer of the two."""
    encoders = read_encoders(checkpoint)
    short, long = literal("the fox"), literal("fox " * 200)
    assert encoders.shapes([short]).prompt_embeds == (1, 77, 2048)
    assert encoders.shapes([short, long]).prompt_embeds == (1, 231, 2048)
    assert encoders.shapes([parse("a BREAK b")]).prompt_embeds == (1, 154, 2048)
    assert encoders.shapes([long]).pooled_prompt_embeds == (1, 1280)


def test_both_tokenizers_are_used(checkpoint: Path) -> None:
    """SDXL has two text encoders, each with its own tokenizer."""
    chunks_by_tokenizer = read_encoders(checkpoint).chunks(literal("the fox"))
    assert {name: [chunk.tokens for chunk in chunks] for name, chunks in chunks_by_tokenizer.items()} == {
        "tokenizer": [("the</w>", "fox</w>")],
        "tokenizer_2": [("the</w>", "fox</w>")],
    }


def test_files_are_read_once(checkpoint: Path) -> None:
    """Reading the vocabulary takes several 100 ms, and the shim inspects many prompts."""
    assert read_encoders(checkpoint) is read_encoders(checkpoint)


@pytest.mark.parametrize("content", [None, "{}", '{"hidden_size": "wide"}'])
def test_the_error_names_a_config_without_widths(checkpoint: Path, content: str | None) -> None:
    """Operators see which config file of the checkpoint is wrong."""
    config = checkpoint / "text_encoder" / "config.json"
    config.unlink() if content is None else config.write_text(content)
    with pytest.raises(ModelLoadError, match=r"text_encoder/config\.json"):
        read_encoders(checkpoint)
