"""Small CLIP tokenizers on disk, in the layouts that checkpoints come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = [
    "t h",
    "th e</w>",
    "o x</w>",
    "f ox</w>",
    "r e",
    "re d</w>",
    "! !</w>",
    "a n",
    "an d</w>",
    "Ã ©</w>",
]


def vocabulary() -> dict[str, int]:
    """Token ids of all bytes, word-final bytes, merge results, and the start and end tokens."""
    letters = sorted(ByteLevel.alphabet())
    merged = [line.replace(" ", "") for line in MERGES]
    words = [*letters, *(letter + "</w>" for letter in letters), *merged, BOS, EOS]
    return {word: at for at, word in enumerate(dict.fromkeys(words))}


def flags(content: str, *, normalized: bool) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": normalized,
        "rstrip": False,
        "single_word": False,
    }


def slow_layout(folder: Path, pad: str) -> None:
    """Write `vocab.json` and `merges.txt`, the layout of the published SDXL checkpoint."""
    words = vocabulary()
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    added_tokens = {BOS: True, EOS: pad != EOS} | ({pad: False} if pad != EOS else {})
    config = {
        "added_tokens_decoder": {
            str(words[token]): flags(token, normalized=normalized) | {"special": True}
            for token, normalized in added_tokens.items()
        },
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": pad,
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def oldest_layout(folder: Path, pad: str) -> None:
    """Write the layout without added tokens, in which `special_tokens_map.json` takes precedence."""
    slow_layout(folder, pad)
    special_tokens = {"bos_token": flags(BOS, normalized=True), "eos_token": flags(EOS, normalized=True)}
    plain_tokens = {"unk_token": EOS, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens | plain_tokens))
    typed_tokens = {name: token | {"__type": "AddedToken"} for name, token in special_tokens.items()}
    config = typed_tokens | plain_tokens | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def fast_layout(folder: Path, pad: str) -> None:
    """Write `tokenizer.json`, the layout of newer library versions."""
    from transformers import CLIPTokenizer

    merges = [tuple(line.split(" ")) for line in MERGES]
    tokenizer = CLIPTokenizer(vocab=vocabulary(), merges=merges, model_max_length=77, pad_token=pad)
    tokenizer.save_pretrained(folder)


LAYOUTS: dict[str, Callable[[Path, str], None]] = {
    "slow": slow_layout,
    "oldest": oldest_layout,
    "fast": fast_layout,
}


@pytest.fixture(scope="session", params=[(layout, pad) for layout in LAYOUTS for pad in (EOS, "!")], ids=str)
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer in each layout, with the end token or an exclamation mark as padding."""
    layout, pad = request.param
    folder = tmp_path_factory.mktemp("tokenizers") / "tokenizer"
    LAYOUTS[layout](folder, pad)
    return folder


@pytest.fixture
def slow_tokenizer_folder(tmp_path: Path) -> Path:
    """The folder of a tokenizer in the slow layout, which a test may change."""
    slow_layout(tmp_path / "tokenizer", "!")
    return tmp_path / "tokenizer"
