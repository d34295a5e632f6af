"""What tiny-sdxl is made of: the classes of SDXL, small."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers
import torch
import transformers

from training.sdxl.start import wire_colours_through

NATIVE_PX = 128
"""Shapes are then five to eight latents wide. At 64 px it is three, too few to tell a star from a circle."""
TOKENS = 77
LATENT_CHANNELS = 4
SHRINK = 8
VAE_GROUPS = 2
"""Few: many small groups would hide how bright a plain picture is."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the parts are. The two text encoders differ in width, as SDXL's do: diffusers tells the
    encoders of a single file apart by it."""

    vae_channels: tuple[int, int, int, int] = (24, 48, 64, 96)
    text_widths: tuple[int, int] = (64, 96)
    text_layers: int = 2
    unet_channels: tuple[int, ...] = (64, 128)
    unet_heads: tuple[int, ...] = (4, 8)
    unet_layers: int = 1
    groups: int = 8


def vae(shape: Shape) -> diffusers.AutoencoderKL:
    """Four levels, so pictures are eight times as large as latents, like SDXL's."""
    made = diffusers.AutoencoderKL(
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
    wire_colours_through(made)
    return made


def text_encoders(
    shape: Shape, vocabulary: int
) -> tuple[transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection]:
    """Both read captions of `TOKENS` tokens; the second one's projection is the pooled text."""
    first, second = (_text_config(shape, width, vocabulary) for width in shape.text_widths)
    return transformers.CLIPTextModel(first), transformers.CLIPTextModelWithProjection(second)


def _text_config(shape: Shape, width: int, vocabulary: int) -> transformers.CLIPTextConfig:
    """The end token has the highest id, because CLIP pools where the highest id stands."""
    return transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        # CLIP's 0.02 suits its own width; here the prompt would hardly reach the picture at first.
        initializer_factor=3.0,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def unet(shape: Shape) -> diffusers.UNet2DConditionModel:
    """Attends to both encoders side by side; `time_ids` are six sizes embedded in 8 numbers each."""
    levels = len(shape.unet_channels)
    return diffusers.UNet2DConditionModel(
        sample_size=NATIVE_PX // SHRINK,
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


def scheduler() -> diffusers.EulerDiscreteScheduler:
    """Starts at the very last timestep: few steps must not start from a picture that is only half noise."""
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def parameters(module: torch.nn.Module) -> int:
    """How many numbers a module has learnt."""
    return sum(one.numel() for one in module.parameters())
