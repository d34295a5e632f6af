"""Writes SDXL as one file in the layout of its release: the inverse of what the loader does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers

from ourvidz.pipelines.checkpoints import PACKAGED, SDXL_BASE_CONFIG
from ourvidz.pipelines.sdxl.single_file import read_tokenizer

Tensors = dict[str, torch.Tensor]
Naming = Callable[[str], str]

NAMINGS: dict[str, Naming] = {
    "release": lambda name: name,
    "without model.": lambda name: name.removeprefix("model."),
    "model. before all": lambda name: f"model.{name}",
}
"""How programs that write such files name the components."""

# Names of the release for the modules that diffusers renamed.
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
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
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


def write(
    path: Path,
    pipe: Any,
    *,
    naming: str = "release",
    dtype: torch.dtype = torch.float32,
    without: tuple[str, ...] = (),
    averages: bool = False,
    added: Tensors | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write the weights of a pipeline to one file. `without` are prefixes of components that are left out;
    `averages` adds other weights as averages of the training; `added` are further tensors."""
    tensors = {name: weight.to(dtype) for name, weight in release_tensors(pipe).items()}
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    if averages:
        prefix = "model.diffusion_model."
        names = [name for name in tensors if name.startswith(prefix)]
        for name in names:
            flat = "model_ema." + name.removeprefix("model.").replace(".", "")
            tensors[flat] = torch.zeros_like(tensors[name])
        tensors["model_ema.decay"] = torch.tensor(0.9999)
    tensors = {name: weight for name, weight in tensors.items() if not name.startswith(without or ("\0",))}
    renamed = {NAMINGS[naming](name): weight.contiguous() for name, weight in tensors.items()}
    safetensors.torch.save_file({**renamed, **(added or {})}, path, metadata=metadata)
    return path


def release_tensors(pipe: Any) -> Tensors:
    """The weights of a pipeline by their names in the release."""
    weights = _unet(pipe.unet) | _vae(pipe.vae)
    for name, weight in pipe.text_encoder.state_dict().items():
        weights["conditioner.embedders.0.transformer.text_model." + name.removeprefix("text_model.")] = weight
    return {name: weight.contiguous().clone() for name, weight in (weights | _open_clip(pipe)).items()}


def small_base(packaged: Path) -> Path:
    """A diffusers folder of SDXL base 1.0's structure with small random weights and CLIP's vocabulary, and in
    `packaged` the config folder that bare files of this size need: the packaged one with fewer channels."""
    config = copytree(PACKAGED / SDXL_BASE_CONFIG, packaged / SDXL_BASE_CONFIG)
    _change(
        config / "unet",
        attention_head_dim=[2, 2, 4],
        block_out_channels=[8, 16, 16],
        norm_num_groups=4,
        cross_attention_dim=40,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        sample_size=8,
        transformer_layers_per_block=[1, 1, 2],
    )
    _change(config / "vae", block_out_channels=[8, 8, 16, 16], norm_num_groups=4, sample_size=64)
    for name, width in (("text_encoder", 16), ("text_encoder_2", 24)):
        _change(
            config / name,
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_attention_heads=4,
            num_hidden_layers=3,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261128)
        pipe = diffusers.StableDiffusionXLPipeline(
            vae=diffusers.AutoencoderKL.from_config(read_config(config / "vae")),
            text_encoder=transformers.CLIPTextModel(text_config(config / "text_encoder")),
            text_encoder_2=transformers.CLIPTextModelWithProjection(text_config(config / "text_encoder_2")),
            tokenizer=read_tokenizer(config / "tokenizer"),
            tokenizer_2=read_tokenizer(config / "tokenizer_2"),
            unet=diffusers.UNet2DConditionModel.from_config(read_config(config / "unet")),
            scheduler=diffusers.EulerDiscreteScheduler.from_pretrained(config, subfolder="scheduler"),
            add_watermarker=False,
        )
    pipe.save_pretrained(packaged / "small-base", safe_serialization=True)
    return packaged / "small-base"


def _unet(unet: Any) -> Tensors:
    """The layers of a level are counted through: `down_blocks.1.resnets.0` is `input_blocks.4.0` with two
    layers a level and one for the change of size."""
    level = unet.config.layers_per_block + 1
    weights = {}
    for name, weight in unet.state_dict().items():
        block, _, rest = name.partition(".")
        if block in ("down_blocks", "up_blocks"):
            number, kind, layer, rest = rest.split(".", 3)
            down = block == "down_blocks"
            resized = kind in ("downsamplers", "upsamplers")
            first, index = level * int(number) + down, (level - 1 if resized else int(layer))
            has_attention = bool(getattr(getattr(unet, block)[int(number)], "attentions", None))
            if resized:
                place, rest = ("0", rest.replace("conv", "op")) if down else (str(1 + has_attention), rest)
            else:
                place = "0" if kind == "resnets" else "1"
            target = f"{'input' if down else 'output'}_blocks.{first + index}.{place}.{rest}"
        else:
            target = _rename(name, UNET)
        is_resnet = ".resnets." in name
        weights["model.diffusion_model." + (_rename(target, RESNET) if is_resnet else target)] = weight
    return weights


def _vae(vae: Any) -> Tensors:
    weights = {}
    for name, weight in vae.state_dict().items():
        shaped = weight[:, :, None, None] if "attentions" in name and weight.dim() == 2 else weight
        weights["first_stage_model." + _rename(name, VAE)] = shaped
    return weights


def _open_clip(pipe: Any) -> Tensors:
    """The second text encoder: queries, keys and values are one matrix, the projection is transposed."""
    weights = {}
    second = pipe.text_encoder_2.state_dict()
    for name, weight in second.items():
        target = "conditioner.embedders.1.model." + _rename(name, OPEN_CLIP)
        if "text_projection" in name:
            weights[target.removesuffix(".weight")] = weight.T
        elif ".q_proj." in name:
            joined = [second[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            weights[target.replace(".q_proj.", ".in_proj_")] = torch.cat(joined)
        elif ".k_proj." not in name and ".v_proj." not in name:
            weights[target] = weight
    return weights


def _rename(name: str, names: dict[str, str]) -> str:
    for diffusers_name, original_name in names.items():
        name = name.replace(diffusers_name, original_name)
    return name


def read_config(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return document


def _change(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(read_config(folder) | values))


def text_config(folder: Path) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig.from_pretrained(folder)
