"""The components of tiny-wan: the model classes of Wan 2.1, small."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers
import torch
import transformers

from training.wan.initialization import initialize_block_averages
from training.wan.tokenization import EOS_ID, PAD_ID

NATIVE_PX = 64
NATIVE_FRAMES = 17
TEMPORAL_SCALE = 4
SPATIAL_SCALE = 8
FLOW_SHIFT = 5.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of all components."""

    vae_channels: int = 32
    vae_levels: tuple[int, ...] = (1, 2, 2)
    latent_channels: int = 16
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4
    head_width: int = 32
    layers: int = 6
    feed_forward: int = 384


def build_vae(shape: Shape) -> diffusers.AutoencoderKLWan:
    """An untrained VAE that compresses eight times in space and four times in time; the first frame is a
    latent of its own.

    It has the architecture of the Wan 2.2 VAE: patches of 2x2 pixels make it four times as fast, and
    shortcuts that average make it converge sooner.
    """
    colours = 3
    patch = 2
    vae = diffusers.AutoencoderKLWan(
        base_dim=shape.vae_channels,
        z_dim=shape.latent_channels,
        dim_mult=list(shape.vae_levels),
        num_res_blocks=1,
        temperal_downsample=[True] * (len(shape.vae_levels) - 1),
        latents_mean=[0.0] * shape.latent_channels,
        latents_std=[1.0] * shape.latent_channels,
        is_residual=True,
        in_channels=colours * patch**2,
        out_channels=colours * patch**2,
        patch_size=patch,
        scale_factor_temporal=TEMPORAL_SCALE,
        scale_factor_spatial=patch * 2 ** (len(shape.vae_levels) - 1),
    )
    initialize_block_averages(vae)
    return vae


def build_text_encoder(shape: Shape, vocabulary: int) -> transformers.UMT5EncoderModel:
    """An untrained UMT5 encoder; its output is (texts, tokens, text_width)."""
    return transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=vocabulary,
            d_model=shape.text_width,
            d_kv=shape.text_width // 4,
            d_ff=2 * shape.text_width,
            num_layers=shape.text_layers,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
        )
    )


def build_transformer(shape: Shape) -> diffusers.WanTransformer3DModel:
    """An untrained transformer with patches of 1x2x2 latents: 16 tokens for each latent frame of a native
    clip."""
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        in_channels=shape.latent_channels,
        out_channels=shape.latent_channels,
        text_dim=shape.text_width,
        freq_dim=64,
        ffn_dim=shape.feed_forward,
        num_layers=shape.layers,
        rope_max_seq_len=256,
    )


def build_scheduler() -> diffusers.UniPCMultistepScheduler:
    """UniPC with flow prediction, as in Wan; the shift puts most steps at high noise."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=FLOW_SHIFT,
        num_train_timesteps=1000,
    )


def parameter_count(module: torch.nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
