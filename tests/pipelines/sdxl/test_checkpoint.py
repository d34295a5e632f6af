"""SDXL checkpoints on disk: diffusers folders and single files."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import checkpoint_mib
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.sdxl.model import _read_pipeline
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import image_levels
from tests.pipelines.weight_files import KOHYA, SDXL, write_sparse


def test_the_packaged_checkpoint_is_the_default(sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A package without it is an error: images of noise would look like a result."""
    with pytest.raises(ModelLoadError, match=r"There is no checkpoint folder .*tiny-sdxl"):
        find_sdxl(None, packaged=tmp_path)
    copytree(sdxl_checkpoint.path, tmp_path / "tiny-sdxl")
    assert find_sdxl(None, packaged=tmp_path) == Checkpoint(tmp_path / "tiny-sdxl", "tiny")


def test_a_diffusers_folder_is_found(sdxl_checkpoint: Checkpoint) -> None:
    """At the path in the settings."""
    assert find_sdxl(sdxl_checkpoint.path) == Checkpoint(sdxl_checkpoint.path, "folder")


def test_a_folder_with_float16_weights_only_can_be_loaded(
    sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Most downloads of SDXL have only the fp16 variant."""
    from diffusers import StableDiffusionXLPipeline

    half = tmp_path / "half"
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        sdxl_checkpoint.path, local_files_only=True, dtype=torch.float16
    )
    pipeline.save_pretrained(half, variant="fp16")
    checkpoint = find_sdxl(half)
    assert checkpoint.variant(half=False) == "fp16"
    assert find_sdxl(sdxl_checkpoint.path).variant(half=True) is None
    sdxl = SDXLPipeline(checkpoint, device=torch.device("cpu"))
    assert len(image_levels(sdxl, image_job())) == 1


def test_in_half_precision_the_smaller_files_are_read(sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Where both lie beside each other: from a network volume, the others take twice as long."""
    both = copytree(sdxl_checkpoint.path, tmp_path / "both")
    for folder in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (file,) = (both / folder).glob("*.safetensors")
        weights = {name: weight.half() for name, weight in load_file(file).items()}
        if folder == "vae":
            weights["quant_conv.bias"] += 1
        save_file(weights, file.with_name(f"{file.stem}.fp16.safetensors"), metadata={"format": "pt"})
    checkpoint = find_sdxl(both)
    assert checkpoint_mib(checkpoint, torch.float32) == checkpoint_mib(sdxl_checkpoint, torch.float32)
    full = _read_pipeline(checkpoint, torch.float32).vae.quant_conv.bias
    for dtype in (torch.float16, torch.bfloat16):
        half = _read_pipeline(checkpoint, dtype).vae.quant_conv.bias
        assert float((half.float() - full).mean()) == pytest.approx(1, abs=0.05)
    (both / "text_encoder" / "model.fp16.safetensors").unlink()
    assert checkpoint.variant(half=True) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no SDXL checkpoint at"),
        ("empty", "no model_index.json: it is not in the diffusers layout.$"),
        ("", r"For a checkpoint that is one file, name the file: flow\.safetensors\.$"),
        ("model.ckpt", "a pickle: refused"),
        ("model.safetensors", "is truncated: it has 10000 bytes instead of"),
        ("lora.safetensors", r"lora\.safetensors is a LoRA, not an SDXL checkpoint\."),
        ("flow.safetensors", r"flow\.safetensors: The file predicts 'flow'"),
        ("int8.safetensors", r"int8\.safetensors is quantized \(.*: I8\)"),
        ("scaled.safetensors", r"scaled\.safetensors is quantized \(.*\.scale_weight: F16\)"),
        ("renamed.sft", "not named .safetensors"),
        ("partly.safetensors", r"lacks text_encoder_2/config.json, tokenizer_2/tokenizer_config.json"),
        ("vaeless.safetensors", "holds no VAE: set OURVIDZ_SDXL_VAE"),
    ],
)
def test_the_error_names_what_is_missing(
    sdxl_checkpoint: Checkpoint, tmp_path: Path, name: str, message: str
) -> None:
    """An operator must be able to repair an installation from one line."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04")
    for file in ("model.safetensors", "renamed.sft", "partly.safetensors"):
        write_sparse(tmp_path / file, SDXL)
    os.truncate(tmp_path / "model.safetensors", 10_000)
    write_sparse(tmp_path / "lora.safetensors", KOHYA)
    write_sparse(tmp_path / "int8.safetensors", SDXL, dtype="I8")
    scale = {"model.diffusion_model.out.2.scale_weight": ()}
    write_sparse(tmp_path / "scaled.safetensors", SDXL | scale)
    write_sparse(tmp_path / "flow.safetensors", SDXL, metadata={"modelspec.prediction_type": "flow"})
    write_sparse(
        tmp_path / "vaeless.safetensors",
        {name: shape for name, shape in SDXL.items() if not name.startswith("first_stage_model.")},
    )
    configs = copytree(sdxl_checkpoint.path, tmp_path / "partly.config")
    (configs / "text_encoder_2" / "config.json").unlink()
    (configs / "tokenizer_2" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelLoadError, match=message):
        find_sdxl(tmp_path / name)
