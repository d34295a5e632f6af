"""Writes safetensors files of any size that take no space on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

UNET = "model.diffusion_model."
SDXL_UNET = {
    f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{UNET}time_embed.0.weight": (1280, 320),
    f"{UNET}label_emb.0.0.weight": (1280, 2816),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
}
FIRST = {
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
}
SECOND = {
    "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
    "conditioner.embedders.1.model.transformer.resblocks.0.ln_1.weight": (1280,),
}
VAE = {"decoder.conv_in.weight": (512, 4, 3, 3), "decoder.up.0.block.0.norm1.weight": (256,)}
SDXL = SDXL_UNET | FIRST | SECOND | {f"first_stage_model.{name}": shape for name, shape in VAE.items()}
"""Names and shapes that identify SDXL, as its release has them."""
KOHYA = {
    "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (16, 640),
    "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": (640, 16),
    "lora_unet_input_blocks_4_1_proj_in.alpha": (),
}
"""A LoRA as kohya's programs write it."""


def write_sparse(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    metadata: Mapping[str, Any] | None = None,
    dtype: Literal["F16", "I8"] = "F16",
) -> Path:
    """Write a safetensors file of tensors with these shapes, all zeros and not stored."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + (2 if dtype == "F16" else 1) * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)
    return path
