"""Reading the files of the Wan release, offline: the names of their weights, and the shapes they imply.

The release writes down the transformer's shape alone. The VAE is the one of Wan 2.1 for every model; of the
text encoder everything that its config must say shows in the shapes of its weights.
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
from ourvidz.pipelines.wan.checkpoint import CONFIG, TEXT_ENCODER, TOKENIZER, TRANSFORMER, VAE, weight_files

Weights = dict[str, torch.Tensor]

_TEXT_NAMES = (
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
"""What the release calls the parts of its text encoder, and what transformers does."""


def read_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """The transformer of a text-to-video or a VACE checkpoint."""
    config = json.loads((folder / CONFIG).read_text())
    found: Weights = {}
    for file in weight_files(folder, TRANSFORMER):
        found |= load_file(file)
    shape = {
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "text_dim": found["text_embedding.0.weight"].shape[1],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "eps": config["eps"],
    }
    kind = diffusers.WanTransformer3DModel
    if config["model_type"] == "vace":
        kind = diffusers.WanVACETransformer3DModel
        shape |= {
            "vace_layers": config.get("vace_layers") or list(range(0, config["num_layers"], 2)),
            "vace_in_channels": found["vace_patch_embedding.weight"].shape[1],
        }
    with init_empty_weights():
        model = kind(**shape)
    renamed = convert_wan_transformer_to_diffusers(found)
    return _filled(model, renamed, dtype, single=tuple(kind._keep_in_fp32_modules))


def read_vae(folder: Path) -> Any:
    """The VAE, in single precision."""
    found = _pickled(folder / VAE)
    width = found["encoder.conv1.weight"].shape[0]
    with init_empty_weights():
        model = diffusers.AutoencoderKLWan(base_dim=width)
    return _filled(model, convert_wan_vae_to_diffusers(found), torch.float32)


def read_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """The text encoder."""
    found = _pickled(folder / TEXT_ENCODER)
    with init_empty_weights():
        model = transformers.UMT5EncoderModel(_text_config(found))
    renamed = {_renamed(name): weight for name, weight in found.items()}
    filled = _filled(model, renamed | {"shared.weight": found["token_embedding.weight"]}, dtype)
    # Two names for one weight, of 2 GiB: as two it would take the room twice.
    filled.encoder.embed_tokens.weight = filled.shared.weight
    return filled


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer."""
    return transformers.AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)


def _text_config(found: Weights) -> transformers.UMT5Config:
    """The shape of the text encoder. What is not given here is the same in transformers and the release."""
    vocabulary, width = found["token_embedding.weight"].shape
    buckets, heads = found["blocks.0.pos_embedding.embedding.weight"].shape
    return transformers.UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=found["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=found["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in found),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


def _renamed(name: str) -> str:
    for theirs, ours in _TEXT_NAMES:
        name, changed = re.subn(theirs, ours, name)
        if changed:
            return name
    return name


def _pickled(file: Path) -> Weights:
    """The tensors of a `.pth` file; anything else in it is refused, as it could run code."""
    # Files that torch wrote before 1.6 are no archives, and cannot be mapped into memory.
    found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(found, dict) or not all(isinstance(weight, torch.Tensor) for weight in found.values()):
        raise ModelLoadError(f"{file} holds more than weights.")
    return found


def _filled(model: Any, weights: Weights, dtype: torch.dtype, *, single: tuple[str, ...] = ()) -> Any:
    """The model with these weights in `dtype`; those with a part of `single` in their name: single."""
    placed = {
        name: weight.to(torch.float32 if any(part in name for part in single) else dtype)
        for name, weight in weights.items()
    }
    missing, unexpected = model.load_state_dict(placed, strict=False, assign=True)
    if missing or unexpected:
        problem = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which nothing needs"
        raise ModelLoadError(f"{type(model).__name__} {problem}.")
    return model.eval().requires_grad_(False)
