"""Wan checkpoints on disk: layouts, missing files, and which model a folder is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint
from ourvidz.pipelines.wan.checkpoint import (
    WanModelInfo,
    find_wan,
    missing_diffusers_files,
    read_model_info,
    weight_files,
)


def write_diffusers_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A diffusers folder with nothing but the transformer's config."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer/config.json").write_text(json.dumps(config))
    return folder


def test_the_packaged_checkpoint_is_the_default(tmp_path: Path) -> None:
    """Another folder can be given in the settings."""
    for folder in (tmp_path / "tiny-wan", tmp_path / "other"):
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
    assert find_wan(None, packaged=tmp_path) == Checkpoint(tmp_path / "tiny-wan", "tiny")
    assert find_wan(tmp_path / "other", packaged=tmp_path) == Checkpoint(tmp_path / "other", "folder")


def test_the_error_names_the_folder_without_a_checkpoint(tmp_path: Path) -> None:
    """An operator must see which folder was searched, and for what."""
    (tmp_path / "empty").mkdir()
    for model, message in (
        (None, "There is no checkpoint folder .*tiny-wan"),
        (tmp_path / "none", "There is no checkpoint folder .*none"),
        (tmp_path / "empty", "empty has no model_index.json"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            find_wan(model, packaged=tmp_path)


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
def test_the_model_of_a_diffusers_folder_follows_from_the_transformer_s_config(
    tmp_path: Path, config: dict[str, Any], model: str
) -> None:
    """The pipeline class is the same for first-and-last-frame and image-to-video."""
    folder = write_diffusers_folder(tmp_path / "one", {"num_layers": 30} | config)
    assert read_model_info(folder) == WanModelInfo(model, 30)


@pytest.mark.parametrize("model", ["t2v", "i2v", "flf2v", "vace"])
def test_the_config_of_the_release_names_the_model(tmp_path: Path, model: str) -> None:
    """As `model_type`."""
    (tmp_path / "Wan2.1_VAE.pth").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model, "num_layers": 40}))
    assert read_model_info(tmp_path) == WanModelInfo(model, 40)


@pytest.mark.parametrize("config", ["{", "[]", '{"num_layers": "many", "model_type": "t2v"}', "{}"])
@pytest.mark.parametrize("original", [True, False])
def test_an_unreadable_config_is_named(tmp_path: Path, config: str, original: bool) -> None:
    """It is the one file that an operator has to look at."""
    folder = write_diffusers_folder(tmp_path / "one", {})
    file = folder / "transformer/config.json"
    if original:
        (folder / "model_index.json").unlink()
        (folder / "Wan2.1_VAE.pth").touch()
        file = folder / "config.json"
    file.write_text(config)
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read"):
        read_model_info(folder)


def test_all_missing_files_of_a_diffusers_folder_are_named(tmp_path: Path) -> None:
    """An interrupted download lacks several."""
    folder = write_diffusers_folder(tmp_path / "one", {"num_layers": 2})
    index = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "boundary_ratio": None,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
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


def test_the_packaged_checkpoint_is_complete_and_text_to_video() -> None:
    """It must pass its own check."""
    assert find_wan(None, expected="t2v").kind == "tiny"
    assert missing_diffusers_files(PACKAGED / "tiny-wan") == []


def test_an_index_without_weights_is_an_error(tmp_path: Path) -> None:
    """No weights would be loaded, without a message."""
    (tmp_path / "w.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="lists no weights"):
        weight_files(tmp_path, "w.safetensors")
    assert weight_files(tmp_path, "other.safetensors") == [tmp_path / "other.safetensors"]
