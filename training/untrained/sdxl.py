"""The SDXL class set with random weights from a fixed seed.

The same classes and folder layout as a real checkpoint, with a native size of 64×64 px and about a million
parameters in the UNet.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from ourvidz.pipelines import devices

SEED = 20240716
WIDTHS = (24, 40)
"""Widths of the two text encoders, whose outputs are concatenated. They differ as in the real checkpoint:
diffusers identifies the encoders of a single file by their width."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build(folder: Path) -> None:
    """Write the checkpoint to `folder` in the diffusers layout. Every call writes equal files and leaves
    torch's random state unchanged."""
    devices.quiet_libraries()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        pipeline = diffusers.StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=transformers.CLIPTextModel(_text_config(WIDTHS[0])),
            text_encoder_2=transformers.CLIPTextModelWithProjection(_text_config(WIDTHS[1])),
            tokenizer=_tokenizer(pad_token=EOS),
            tokenizer_2=_tokenizer(pad_token="!"),
            unet=_unet(),
            scheduler=_scheduler(),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)


def _tokenizer(pad_token: str) -> transformers.CLIPTokenizer:
    """One token per byte: each byte has one token inside a word and one at its end; there are no merges."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), BOS, EOS]
    return transformers.CLIPTokenizer(
        vocab={token: token_id for token_id, token in enumerate(tokens)},
        merges=[],
        model_max_length=77,
        pad_token=pad_token,
    )


def _text_config(width: int) -> transformers.CLIPTextConfig:
    """EOS has the highest id, because CLIP pools at the position of the highest id."""
    return transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=77,
        hidden_act="gelu",
        # Larger than CLIP's default: at this depth the prompt would hardly affect the image.
        initializer_factor=5.0,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _unet() -> diffusers.UNet2DConditionModel:
    """The added embedding has six `time_ids` of 8 numbers each, and the pooled text."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        cross_attention_dim=sum(WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTHS[1],
    )


def _vae() -> diffusers.AutoencoderKL:
    """Four levels, so that a latent is 8 px wide, as in the real VAE."""
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=True,
    )


def _scheduler() -> diffusers.EulerDiscreteScheduler:
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
