"""Which of Wan's models a folder is, from its names and its JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.pipelines.wan.checkpoint import (
    WanModelInfo,
    find_wan,
    missing_diffusers_files,
    read_model_info,
    weight_files,
)


def diffusers_folder(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer/config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({}, "t2v"),
        ({"in_channels": 16, "out_channels": 16, "image_dim": None}, "t2v"),
        ({"in_channels": 36, "out_channels": 16, "image_dim": 1280}, "i2v"),
        ({"in_channels": 36, "out_channels": 16, "image_dim": 1280, "pos_embed_seq_len": 514}, "flf2v"),
        ({"in_channels": 16, "vace_layers": [0, 2]}, "vace"),
    ],
)
def test_a_diffusers_folder_tells_by_its_transformer(
    tmp_path: Path, config: dict[str, Any], model: str
) -> None:
    """The name of the pipeline class does not tell first-and-last-frame from image-to-video."""
    folder = diffusers_folder(tmp_path / "one", {"num_layers": 30} | config)
    assert read_model_info(folder) == WanModelInfo(model, 30)


@pytest.mark.parametrize("model", ["t2v", "i2v", "flf2v", "vace"])
def test_the_release_tells_by_its_config(tmp_path: Path, model: str) -> None:
    """It has the model's name in it."""
    (tmp_path / "Wan2.1_VAE.pth").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model, "num_layers": 40}))
    assert read_model_info(tmp_path) == WanModelInfo(model, 40)


@pytest.mark.parametrize("config", ["{", "[]", '{"num_layers": "many", "model_type": "t2v"}', "{}"])
@pytest.mark.parametrize("original", [True, False])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, config: str, original: bool) -> None:
    """The one file an operator has to look at."""
    folder = diffusers_folder(tmp_path / "one", {})
    file = folder / "transformer/config.json"
    if original:
        (folder / "model_index.json").unlink()
        (folder / "Wan2.1_VAE.pth").touch()
        file = folder / "config.json"
    file.write_text(config)
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read"):
        read_model_info(folder)


def test_what_the_index_promises_and_is_not_there_is_named(tmp_path: Path) -> None:
    """All of it at once: a download that broke off lacks several."""
    folder = diffusers_folder(tmp_path / "one", {"num_layers": 2})
    promised = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "boundary_ratio": None,
    }
    (folder / "model_index.json").write_text(json.dumps(promised))
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/config.json").touch()
    (folder / "text_encoder/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors"}})
    )
    assert missing_diffusers_files(folder) == [
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model-1.safetensors",
    ]
    with pytest.raises(ModelLoadError, match=r"in the diffusers layout and lacks scheduler/"):
        find_wan(folder)


def test_the_packaged_checkpoint_is_whole_and_for_text() -> None:
    """What ships must pass its own check."""
    assert find_wan(None, expected="t2v").kind == "tiny"
    assert missing_diffusers_files(PACKAGED / "tiny-wan") == []


def test_an_index_without_weights_is_refused(tmp_path: Path) -> None:
    """Nothing would be loaded, and nothing said."""
    (tmp_path / "w.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="lists no weights"):
        weight_files(tmp_path, "w.safetensors")
    assert weight_files(tmp_path, "other.safetensors") == [tmp_path / "other.safetensors"]
