"""Those of Wan's class sets that are given pictures, with random weights: VACE and image-to-video.

VACE can stand on a text-to-video checkpoint: with its weights, and further blocks that do not speak yet, it
makes that one's clips.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers

from ourvidz.pipelines import devices
from training.untrained.wan import build

SEED = 20250314
IMAGE_WIDTH = 16
IMAGE_PX = 24
PATCH_PX = 8
TOKENS = 1 + (IMAGE_PX // PATCH_PX) ** 2
"""What the image encoder says of a picture: of the whole, and of every patch."""


def build_vace(folder: Path, *, beside: Path | None = None, speaking: bool = True, layers: int = 0) -> None:
    """Write a VACE checkpoint into `folder`. `beside` is a text-to-video checkpoint to share all weights with
    but those of the further blocks; without one it is the untrained one. Unless `speaking` these blocks add
    nothing. `layers` is the number of the others, the same as there unless given."""
    devices.quiet_libraries()
    if beside is None:
        build(folder)
        beside = folder
    pipe = diffusers.WanPipeline.from_pretrained(beside, local_files_only=True, use_safetensors=True)
    shape = {name: pipe.transformer.config[name] for name in _SHAPE}
    shape["num_layers"] = layers or shape["num_layers"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        transformer = diffusers.WanVACETransformer3DModel(
            **shape,
            vace_layers=list(range(0, shape["num_layers"], 2)),
            vace_in_channels=2 * shape["in_channels"] + pipe.vae.config.scale_factor_spatial**2,
        )
    transformer.load_state_dict(pipe.transformer.state_dict(), strict=False)
    if not speaking:
        for block in transformer.vace_blocks:
            torch.nn.init.zeros_(block.proj_out.weight)
            torch.nn.init.zeros_(block.proj_out.bias)
    parts = {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    diffusers.WanVACEPipeline(**parts, transformer=transformer).save_pretrained(folder)


def build_image_to_video(folder: Path, *, pictures: int = 1, layers: int = 2) -> None:
    """Write a checkpoint that begins with a picture into `folder`; with two it ends on the second."""
    build(folder)
    pipe = diffusers.WanPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    shape = {name: pipe.transformer.config[name] for name in _SHAPE}
    width = shape["num_attention_heads"] * shape["attention_head_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        transformer = diffusers.WanTransformer3DModel(
            **shape
            | {
                "in_channels": 2 * shape["in_channels"] + 4,
                "num_layers": layers,
                "image_dim": IMAGE_WIDTH,
                "added_kv_proj_dim": width,
                "pos_embed_seq_len": None if pictures == 1 else pictures * TOKENS,
            }
        )
        encoder = transformers.CLIPVisionModel(_image_config())
    parts = {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    diffusers.WanImageToVideoPipeline(
        **parts, transformer=transformer, image_encoder=encoder, image_processor=_image_processor()
    ).save_pretrained(folder)


def _image_config() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=2 * IMAGE_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        initializer_factor=5.0,
    )


def _image_processor() -> transformers.CLIPImageProcessorPil:
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": IMAGE_PX}, crop_size=side)


_SHAPE = (
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
"""What both kinds of transformers have of their text-to-video one."""
