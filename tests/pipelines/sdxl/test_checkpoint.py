"""SDXL checkpoints on disk: diffusers folders and single files."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import safetensors.torch
import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import MAX_DIFFERENCE, difference, image_levels


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
    assert checkpoint.variant == "fp16"
    assert find_sdxl(sdxl_checkpoint.path).variant is None
    sdxl = SDXLPipeline(checkpoint, device=torch.device("cpu"))
    assert len(image_levels(sdxl, image_job())) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no SDXL checkpoint at"),
        ("empty", "no model_index.json"),
        ("model.ckpt", "not a .safetensors file"),
        ("model.safetensors", r"expected in .*model\.config"),
        ("partly.safetensors", r"lacks text_encoder_2/config.json, tokenizer_2/tokenizer_config.json"),
    ],
)
def test_the_error_names_what_is_missing(
    sdxl_checkpoint: Checkpoint, tmp_path: Path, name: str, message: str
) -> None:
    """An operator must be able to repair an installation from one line."""
    (tmp_path / "empty").mkdir()
    for file in ("model.ckpt", "model.safetensors", "partly.safetensors"):
        (tmp_path / file).write_bytes(b"")
    configs = copytree(sdxl_checkpoint.path, tmp_path / "partly.config")
    (configs / "text_encoder_2" / "config.json").unlink()
    (configs / "tokenizer_2" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelLoadError, match=message):
        find_sdxl(tmp_path / name)


def test_a_truncated_single_file_is_a_load_error(sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A worker must not hang on an incomplete download."""
    (tmp_path / "model.safetensors").write_bytes(b"half a download")
    checkpoint = find_sdxl(tmp_path / "model.safetensors", config=sdxl_checkpoint.path)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors could not be loaded"):
        SDXLPipeline(checkpoint).load()


def test_a_single_file_generates_the_images_of_its_folder(
    sdxl_checkpoint: Checkpoint, sdxl: SDXLPipeline, tmp_path: Path
) -> None:
    """Most SDXL checkpoints are one file in the original layout; every weight must be found, offline."""
    file = tmp_path / "landscape.safetensors"
    safetensors.torch.save_file(original_layout(sdxl._pipe), file)
    copytree(
        sdxl_checkpoint.path,
        tmp_path / "landscape.config",
        ignore=lambda _, names: [name for name in names if "safet" in name],
    )
    checkpoint = find_sdxl(file)
    assert (checkpoint.kind, checkpoint.name) == ("single file", "landscape")
    single = SDXLPipeline(checkpoint, cap=128)
    one, other = (image_levels(pipeline, image_job()) for pipeline in (sdxl, single))
    assert difference(one, other) <= MAX_DIFFERENCE


# Names of the original layout for the modules that diffusers renamed.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
VAE = {
    "down_blocks": "down",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "resnets": "block",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
} | {f"up_blocks.{block}.": f"up.{3 - block}." for block in range(4)}
OPEN_CLIP = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    ".self_attn": ".attn",
}


def rename(name: str, names: dict[str, str]) -> str:
    for diffusers_name, original_name in names.items():
        name = name.replace(diffusers_name, original_name)
    return name


def original_layout(pipe: Any) -> dict[str, torch.Tensor]:
    """The weights of a pipeline by their names in a single file of the original layout."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in pipe.unet.state_dict().items():
        target = rename(name, UNET)
        weights["model.diffusion_model." + (rename(target, RESNET) if ".resnets." in name else target)] = (
            weight
        )
    for name, weight in pipe.vae.state_dict().items():
        shaped = weight[:, :, None, None] if "attentions" in name and weight.dim() == 2 else weight
        weights["first_stage_model." + rename(name, VAE)] = shaped
    for name, weight in pipe.text_encoder.state_dict().items():
        weights["conditioner.embedders.0.transformer.text_model." + name.removeprefix("text_model.")] = weight
    second = pipe.text_encoder_2.state_dict()
    for name, weight in second.items():
        target = "conditioner.embedders.1.model." + rename(name, OPEN_CLIP)
        if "text_projection" in name:
            weights[target.removesuffix(".weight")] = weight.T
        elif ".q_proj." in name:
            joined = [second[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            weights[target.replace(".q_proj.", ".in_proj_")] = torch.cat(joined)
        elif ".k_proj." not in name and ".v_proj." not in name:
            weights[target] = weight
    return {name: weight.contiguous().clone() for name, weight in weights.items()}
