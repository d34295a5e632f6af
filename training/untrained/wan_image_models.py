"""The class sets of Wan's models with image inputs, with random weights: VACE and image-to-video.

A VACE checkpoint can share the weights of a text-to-video checkpoint; if its additional blocks output zeros,
it generates the same clips.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers

from ourvidz.pipelines import devices
from training.untrained.wan import build

SEED = 20250314
EMBED_WIDTH = 16
IMAGE_PX = 24
PATCH_PX = 8
TOKENS = 1 + (IMAGE_PX // PATCH_PX) ** 2
"""Embeddings per image: one of the whole image and one per patch."""


def build_vace(
    folder: Path, *, text_to_video: Path | None = None, zero_blocks: bool = False, layers: int = 0
) -> None:
    """Write a VACE checkpoint to `folder`.

    All weights but those of VACE's additional blocks are those of the checkpoint `text_to_video`; the default
    is one with random weights. `zero_blocks` makes the additional blocks output zeros. `layers` is the number
    of transformer blocks; the default is that of `text_to_video`.
    """
    devices.quiet_libraries()
    if text_to_video is None:
        build(folder)
        text_to_video = folder
    pipe = diffusers.WanPipeline.from_pretrained(text_to_video, local_files_only=True, use_safetensors=True)
    shape = {name: pipe.transformer.config[name] for name in _SHARED_CONFIG}
    shape["num_layers"] = layers or shape["num_layers"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        transformer = diffusers.WanVACETransformer3DModel(
            **shape,
            vace_layers=list(range(0, shape["num_layers"], 2)),
            vace_in_channels=2 * shape["in_channels"] + pipe.vae.config.scale_factor_spatial**2,
        )
    transformer.load_state_dict(pipe.transformer.state_dict(), strict=False)
    if zero_blocks:
        for block in transformer.vace_blocks:
            torch.nn.init.zeros_(block.proj_out.weight)
            torch.nn.init.zeros_(block.proj_out.bias)
    components = {name: getattr(pipe, name) for name in _SHARED_COMPONENTS}
    diffusers.WanVACEPipeline(**components, transformer=transformer).save_pretrained(folder)


def build_image_to_video(folder: Path, *, images: int = 1, layers: int = 2) -> None:
    """Write an image-to-video checkpoint to `folder`; with two `images`, one for first and last frame."""
    build(folder)
    pipe = diffusers.WanPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    shape = {name: pipe.transformer.config[name] for name in _SHARED_CONFIG}
    width = shape["num_attention_heads"] * shape["attention_head_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        transformer = diffusers.WanTransformer3DModel(
            **shape
            | {
                "in_channels": 2 * shape["in_channels"] + 4,
                "num_layers": layers,
                "image_dim": EMBED_WIDTH,
                "added_kv_proj_dim": width,
                "pos_embed_seq_len": None if images == 1 else images * TOKENS,
            }
        )
        encoder = transformers.CLIPVisionModel(_image_config())
    components = {name: getattr(pipe, name) for name in _SHARED_COMPONENTS}
    diffusers.WanImageToVideoPipeline(
        **components, transformer=transformer, image_encoder=encoder, image_processor=_image_processor()
    ).save_pretrained(folder)


def _image_config() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        hidden_size=EMBED_WIDTH,
        intermediate_size=2 * EMBED_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        initializer_factor=5.0,
    )


def _image_processor() -> transformers.CLIPImageProcessorPil:
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": IMAGE_PX}, crop_size=side)


_SHARED_COMPONENTS = ("tokenizer", "text_encoder", "vae", "scheduler")
_SHARED_CONFIG = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "qk_norm",
    "eps",
    "rope_max_seq_len",
)
"""The config fields that all of Wan's transformers share."""
