"""Initial weights of the VAE that reproduce the average colour of every block of pixels.

A randomly initialized VAE spends most of a short run on learning to reproduce colours, because its group
norms remove the brightness. Here six channels, the three colours and their negatives, pass through every
level unchanged; what remains to be learned is the detail within a block.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

COLOURS = 3
PASSED = 2 * COLOURS
"""Channels that pass through: the colours and their negatives."""
LOG_VARIANCE = -7.0
"""Log variance of the latents; unit variance would hide the colours at first."""

REFERENCE = 3.0
"""Value of two constant channels, which dominate the deviation that the group norm divides by."""


@torch.no_grad()
def initialize_block_averages(vae: diffusers.AutoencoderKL) -> None:
    """Set the weights of `vae` so that it returns the average colour of every block of 8x8 pixels.

    The first group of its group norms must contain the six passed and the two constant channels.
    """
    signs = torch.eye(COLOURS).repeat(2, 1) * torch.tensor([1.0] * COLOURS + [-1.0] * COLOURS)[:, None]
    halves: tuple[Any, Any] = (vae.encoder, vae.decoder)
    for half in halves:
        _pass_channels(half.conv_in, signs)
        for part in half.modules():
            if isinstance(part, ResnetBlock2D):
                _zero_residual(part.conv2)
                if part.conv_shortcut is not None:
                    _pass_channels(part.conv_shortcut, torch.eye(PASSED))
            elif isinstance(part, Upsample2D | Downsample2D):
                _pass_channels(part.conv, torch.eye(PASSED), average=isinstance(part, Downsample2D))
        _zero_residual(half.mid_block.attentions[0].to_out[0])
    _pass_latents(vae)
    _decode_colours(vae.encoder, torch.rand(8, COLOURS, 64, 64))
    _decode_colours(vae.decoder, _latents())


def _pass_channels(conv: Any, matrix: torch.Tensor, *, average: bool = False) -> None:
    """Set a convolution so that its first output channels are `matrix` times its first input channels,
    followed by the two constants. With `average` it averages 2x2 pixels."""
    conv.weight[: PASSED + 2].zero_()
    conv.bias[: PASSED + 2].zero_()
    conv.bias[PASSED : PASSED + 2] = torch.tensor([REFERENCE, -REFERENCE])
    rows, columns = matrix.shape
    if average:
        conv.weight[:rows, :columns, :2, :2] = matrix[:, :, None, None] / 4
    else:
        centre = conv.kernel_size[0] // 2
        conv.weight[:rows, :columns, centre, centre] = matrix


def _zero_residual(layer: Any) -> None:
    """Set a residual branch so that it adds nothing to the passed channels."""
    layer.weight[: PASSED + 2].zero_()
    layer.bias[: PASSED + 2].zero_()


def _pass_latents(vae: diffusers.AutoencoderKL) -> None:
    """Set the 1x1 convolutions next to the latents to the identity, and the latents to a small variance."""
    channels = vae.config.latent_channels
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[:channels, :channels, 0, 0] = torch.eye(channels)
    vae.quant_conv.bias[channels:] = LOG_VARIANCE


def _decode_colours(half: Any, example: torch.Tensor) -> None:
    """Set the last norm and convolution so that the output is colour minus negative, since silu(x) - silu(-x)
    = x. `example` is an input, from which the deviation that the norm divides by is measured."""
    inputs_of_norm = []
    hook = half.conv_norm_out.register_forward_pre_hook(lambda _, inputs: inputs_of_norm.append(inputs[0]))
    half(example)
    hook.remove()
    norm, conv = half.conv_norm_out, half.conv_out
    first_group = inputs_of_norm[0][:, : norm.num_channels // norm.num_groups]
    norm.weight[:PASSED] = first_group.std(dim=(1, 2, 3)).mean()
    conv.weight[:COLOURS].zero_()
    conv.bias[:COLOURS].zero_()
    centre = conv.kernel_size[0] // 2
    for colour in range(COLOURS):
        conv.weight[colour, colour, centre, centre] = 1
        conv.weight[colour, colour + COLOURS, centre, centre] = -1


def _latents() -> torch.Tensor:
    return torch.rand(8, 4, 8, 8) * 2 - 1
