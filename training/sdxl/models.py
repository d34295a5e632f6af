"""The components of tiny-sdxl: the model classes of SDXL, small."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers
import torch
import transformers

from training.sdxl.initialization import initialize_block_averages

NATIVE_PX = 128
"""Image size of training. Shapes are five to eight latents wide at this size; at 64 px they are three, too
few to distinguish a star from a circle."""
TOKENS = 77
LATENT_CHANNELS = 4
VAE_SCALE = 8
VAE_GROUPS = 2
"""Group norm with many small groups would remove the brightness of a plain image."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of all components. As in SDXL the two text encoders differ in width, which is how diffusers
    distinguishes the encoders of a single file."""

    vae_channels: tuple[int, int, int, int] = (24, 48, 64, 96)
    text_widths: tuple[int, int] = (64, 96)
    text_layers: int = 2
    unet_channels: tuple[int, ...] = (64, 128)
    unet_heads: tuple[int, ...] = (4, 8)
    unet_layers: int = 1
    groups: int = 8


def build_vae(shape: Shape) -> diffusers.AutoencoderKL:
    """An untrained VAE with four levels: images are eight times as large as latents, as in SDXL."""
    vae = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=shape.vae_channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=VAE_GROUPS,
        sample_size=NATIVE_PX,
        force_upcast=True,
    )
    initialize_block_averages(vae)
    return vae


def build_text_encoders(
    shape: Shape, vocabulary: int
) -> tuple[transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection]:
    """Both untrained text encoders for captions of `TOKENS` tokens; the second has a pooled projection."""
    first, second = (_text_config(shape, width, vocabulary) for width in shape.text_widths)
    return transformers.CLIPTextModel(first), transformers.CLIPTextModelWithProjection(second)


def _text_config(shape: Shape, width: int, vocabulary: int) -> transformers.CLIPTextConfig:
    """The configuration of one encoder. The end token has the highest id, where CLIP pools."""
    return transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        # With CLIP's 0.02, which suits a larger width, the prompt would hardly affect the image at first.
        initializer_factor=3.0,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def build_unet(shape: Shape) -> diffusers.UNet2DConditionModel:
    """An untrained UNet that attends to the concatenated outputs of both encoders; each of the six `time_ids`
    is embedded in 8 dimensions."""
    levels = len(shape.unet_channels)
    return diffusers.UNet2DConditionModel(
        sample_size=NATIVE_PX // VAE_SCALE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=shape.unet_channels,
        layers_per_block=shape.unet_layers,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        transformer_layers_per_block=1,
        attention_head_dim=shape.unet_heads,
        use_linear_projection=True,
        norm_num_groups=shape.groups,
        cross_attention_dim=sum(shape.text_widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + shape.text_widths[1],
    )


def build_scheduler() -> diffusers.EulerDiscreteScheduler:
    """Euler with trailing timesteps: sampling in few steps has to start at the last timestep, which is pure
    noise."""
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def parameter_count(module: torch.nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
