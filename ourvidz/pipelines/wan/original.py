"""Reads the files of the Wan release offline: renames their weights and derives the model configs.

The release has a config for the transformer alone. The VAE of Wan 2.1 is the same for every model; the text
encoder's config follows from the shapes of its weights.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors.torch import load_file

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.wan.checkpoint import (
    CONFIG,
    TEXT_ENCODER,
    TOKENIZER,
    TRANSFORMER,
    VAE,
    weight_files,
)

Weights = dict[str, torch.Tensor]

_TEXT_ENCODER_NAMES = (
    (r"^token_embedding\.", "encoder.embed_tokens."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
"""Weight names of the release's text encoder (patterns) and of transformers (replacements)."""


def read_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """The transformer of a text-to-video or VACE checkpoint, on the CPU."""
    config = json.loads((folder / CONFIG).read_text())
    weights: Weights = {}
    for file in weight_files(folder, TRANSFORMER):
        weights |= load_file(file)
    arguments = {
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "text_dim": weights["text_embedding.0.weight"].shape[1],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "eps": config["eps"],
    }
    kind = diffusers.WanTransformer3DModel
    if config["model_type"] == "vace":
        kind = diffusers.WanVACETransformer3DModel
        arguments |= {
            "vace_layers": config.get("vace_layers") or list(range(0, config["num_layers"], 2)),
            "vace_in_channels": weights["vace_patch_embedding.weight"].shape[1],
        }
    with init_empty_weights():
        model = kind(**arguments)
    renamed = convert_wan_transformer_to_diffusers(weights)
    return _load_weights(model, renamed, dtype, float32=tuple(kind._keep_in_fp32_modules))


def read_vae(folder: Path) -> Any:
    """The VAE, in float32, on the CPU."""
    weights = _read_pickled(folder / VAE)
    width = weights["encoder.conv1.weight"].shape[0]
    with init_empty_weights():
        model = diffusers.AutoencoderKLWan(base_dim=width)
    return _load_weights(model, convert_wan_vae_to_diffusers(weights), torch.float32)


def read_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """The text encoder, on the CPU."""
    weights = _read_pickled(folder / TEXT_ENCODER)
    with init_empty_weights():
        model = transformers.UMT5EncoderModel(_text_encoder_config(weights))
    renamed = {_rename(name): weight for name, weight in weights.items()}
    loaded = _load_weights(model, renamed | {"shared.weight": weights["token_embedding.weight"]}, dtype)
    # Two names for one tensor of 2 GiB: converted separately, it would be in memory twice.
    loaded.encoder.embed_tokens.weight = loaded.shared.weight
    return loaded


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer."""
    return transformers.AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)


def _text_encoder_config(weights: Weights) -> transformers.UMT5Config:
    """The config that the weights' shapes imply. Fields not set here have the same defaults in transformers
    as in the release."""
    vocabulary, width = weights["token_embedding.weight"].shape
    buckets, heads = weights["blocks.0.pos_embedding.embedding.weight"].shape
    return transformers.UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=weights["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=weights["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in weights),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


def _rename(name: str) -> str:
    """The name that transformers gives to a weight of the text encoder."""
    for pattern, replacement in _TEXT_ENCODER_NAMES:
        name, changes = re.subn(pattern, replacement, name)
        if changes:
            return name
    return name


def _read_pickled(file: Path) -> Weights:
    """The tensors of a `.pth` file. Raises `ModelLoadError` for other contents, which could run code."""
    # Files written before torch 1.6 are not zip archives and cannot be memory-mapped.
    weights = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(weights, dict) or not all(
        isinstance(weight, torch.Tensor) for weight in weights.values()
    ):
        raise ModelLoadError(f"{file} holds more than weights.")
    return weights


def _load_weights(model: Any, weights: Weights, dtype: torch.dtype, *, float32: tuple[str, ...] = ()) -> Any:
    """Load weights into an empty model, in `dtype`, or in float32 if their name contains one of `float32`.
    Raises `ModelLoadError` if weights are missing or left over."""
    converted = {
        name: weight.to(torch.float32 if any(part in name for part in float32) else dtype)
        for name, weight in weights.items()
    }
    missing, unexpected = model.load_state_dict(converted, strict=False, assign=True)
    if missing or unexpected:
        problem = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which nothing needs"
        raise ModelLoadError(f"{type(model).__name__} {problem}.")
    return model.eval().requires_grad_(False)
