"""Where the VAE starts from: an autoencoder of block averages instead of noise.

A randomly initialised VAE spends most of a short run on a plateau, learning that a colour should come out as
it went in: its group norms hide how bright anything is. Here six channels, the three colours and their
negatives, are wired straight through every level; what is left to learn is what lies within a block.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

COLOURS = 3
WIRED = 2 * COLOURS
LOG_VARIANCE = -7.0
"""Of the latents' noise: with unit noise the colours would drown in it at first."""

REFERENCE = 3.0
"""Of two channels that hold a constant: a group norm divides by about it, not by the brightness."""


@torch.no_grad()
def wire_colours_through(vae: diffusers.AutoencoderKL) -> None:
    """Make `vae` return the average colour of every block of 8x8 pixels.

    Its norms need so few groups that the eight wired channels lie in the first one.
    """
    signs = torch.eye(COLOURS).repeat(2, 1) * torch.tensor([1.0] * COLOURS + [-1.0] * COLOURS)[:, None]
    halves: tuple[Any, Any] = (vae.encoder, vae.decoder)
    for half in halves:
        _wire(half.conv_in, signs)
        for part in half.modules():
            if isinstance(part, ResnetBlock2D):
                _silence(part.conv2)
                if part.conv_shortcut is not None:
                    _wire(part.conv_shortcut, torch.eye(WIRED))
            elif isinstance(part, Upsample2D | Downsample2D):
                _wire(part.conv, torch.eye(WIRED), average=isinstance(part, Downsample2D))
        _silence(half.mid_block.attentions[0].to_out[0])
    _wire_quantisation(vae)
    _read_out(vae.encoder, torch.rand(8, COLOURS, 64, 64))
    _read_out(vae.decoder, _latents())


def _wire(conv: Any, through: torch.Tensor, *, average: bool = False) -> None:
    """The first channels out are `through` times the first channels in, then come the two references."""
    conv.weight[: WIRED + 2].zero_()
    conv.bias[: WIRED + 2].zero_()
    conv.bias[WIRED : WIRED + 2] = torch.tensor([REFERENCE, -REFERENCE])
    rows, columns = through.shape
    if average:
        conv.weight[:rows, :columns, :2, :2] = through[:, :, None, None] / 4
    else:
        middle = conv.kernel_size[0] // 2
        conv.weight[:rows, :columns, middle, middle] = through


def _silence(layer: Any) -> None:
    """Add nothing to the wired channels."""
    layer.weight[: WIRED + 2].zero_()
    layer.bias[: WIRED + 2].zero_()


def _wire_quantisation(vae: diffusers.AutoencoderKL) -> None:
    """Latents pass as they are, with little noise."""
    channels = vae.config.latent_channels
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[:channels, :channels, 0, 0] = torch.eye(channels)
    vae.quant_conv.bias[channels:] = LOG_VARIANCE


def _read_out(half: Any, example: torch.Tensor) -> None:
    """Undo the last norm on the wired channels and take colour minus negative: silu(x) - silu(-x) = x."""
    seen = []
    hook = half.conv_norm_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    half(example)
    hook.remove()
    norm, conv = half.conv_norm_out, half.conv_out
    first_group = seen[0][:, : norm.num_channels // norm.num_groups]
    norm.weight[:WIRED] = first_group.std(dim=(1, 2, 3)).mean()
    conv.weight[:COLOURS].zero_()
    conv.bias[:COLOURS].zero_()
    middle = conv.kernel_size[0] // 2
    for colour in range(COLOURS):
        conv.weight[colour, colour, middle, middle] = 1
        conv.weight[colour, colour + COLOURS, middle, middle] = -1


def _latents() -> torch.Tensor:
    return torch.rand(8, 4, 8, 8) * 2 - 1
