"""Initial weights of the VAE that reproduce the average colour of every block of pixels and frames.

As in tiny-sdxl, the colours and their negatives pass through every level, with two constant channels that
keep the norms from removing the brightness. Every level has an averaging or repeating shortcut already, so
only the first and the last convolution are set, and the residual branches between them add nothing.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock

COLOURS = 3
PASSED = 2 * COLOURS + 2
"""Channels that pass through: colours, their negatives and the two constants."""
REFERENCE = 3.0
RESIDUAL_SCALE = 0.3
"""Factor on the weights of all other channels, because the norms are over all channels."""
LOG_VARIANCE = -7.0


@torch.no_grad()
def initialize_block_averages(vae: diffusers.AutoencoderKLWan) -> None:
    """Set the weights of `vae` so that it returns about the average colour of every block of 8x8 pixels and 4
    frames."""
    patch = vae.config.patch_size**2
    signs = torch.cat([torch.eye(COLOURS), -torch.eye(COLOURS)])
    _set_first(vae.encoder.conv_in, signs.repeat_interleave(patch, dim=1) / patch)
    halves = vae.encoder.norm_out.gamma.shape[0] // vae.encoder.conv_in.out_channels
    _set_first(
        vae.decoder.conv_in, _pad_columns(signs.repeat_interleave(halves, dim=1) / halves, vae.config.z_dim)
    )
    _zero_residuals(vae.encoder, PASSED * halves)
    _zero_residuals(vae.decoder, PASSED)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[: vae.config.z_dim, : vae.config.z_dim, 0, 0, 0] = torch.eye(vae.config.z_dim)
    vae.quant_conv.bias[vae.config.z_dim :] = LOG_VARIANCE
    clip = torch.rand(4, COLOURS, 9, 32, 32) * 2 - 1
    _decode_colours(vae, "encoder", torch.eye(COLOURS * halves), clip)
    _decode_colours(vae, "decoder", torch.eye(COLOURS).repeat_interleave(patch, dim=0), clip)


def _set_first(conv: Any, rows: torch.Tensor) -> None:
    """Set a convolution so that its first output channels are `rows` times the input channels at the same
    position, followed by the constants."""
    conv.weight[:PASSED].zero_()
    conv.bias[:PASSED].zero_()
    conv.weight[: len(rows), :, -1, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2] = rows
    conv.bias[len(rows) : PASSED] = REFERENCE


def _pad_columns(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """`rows` with columns of zeros up to `columns`."""
    padded = torch.zeros(len(rows), columns)
    padded[:, : rows.shape[1]] = rows
    return padded


def _zero_residuals(half: Any, passed: int) -> None:
    """Set all residual branches of the encoder or decoder so that they add nothing to the passed channels and
    little to the others."""
    for part in half.modules():
        if isinstance(part, WanResidualBlock):
            _zero_residual(part.conv2, passed)
            if not isinstance(part.conv_shortcut, torch.nn.Identity):
                _pass_channels(part.conv_shortcut, passed)
        elif isinstance(part, WanAttentionBlock):
            _zero_residual(part.proj, passed)
        elif isinstance(part, WanResample):
            _zero_residual(part.resample[1], passed)
            if part.mode == "downsample3d":
                _zero_residual(part.time_conv, passed)


def _zero_residual(layer: Any, passed: int) -> None:
    """Scale down a layer and set the outputs of the first `passed` channels to zero."""
    layer.weight *= RESIDUAL_SCALE
    layer.bias *= RESIDUAL_SCALE
    layer.weight[:passed].zero_()
    layer.bias[:passed].zero_()


def _pass_channels(conv: Any, passed: int) -> None:
    """Set a 1x1x1 convolution to the identity on the passed channels."""
    conv.weight[:passed].zero_()
    conv.bias[:passed].zero_()
    conv.weight[:passed, :passed, 0, 0, 0] = torch.eye(passed)


def _decode_colours(
    vae: diffusers.AutoencoderKLWan, name: str, rows: torch.Tensor, clip: torch.Tensor
) -> None:
    """Set the last norm and convolution of the half `name` so that the output is colour minus negative, since
    silu(x) - silu(-x) = x.

    `rows` maps the channels of the colours to output channels; the norm is measured on `clip`.
    """
    half = getattr(vae, name)
    inputs_of_norm: list[torch.Tensor] = []
    hook = half.norm_out.register_forward_pre_hook(lambda _, inputs: inputs_of_norm.append(inputs[0]))
    vae.decode(vae.encode(clip).latent_dist.mode())
    hook.remove()
    length = torch.cat(inputs_of_norm, dim=2).norm(dim=1).mean()
    half.norm_out.gamma[:] = length / half.norm_out.scale
    outputs, colours = rows.shape
    centre = (-1, half.conv_out.kernel_size[1] // 2, half.conv_out.kernel_size[2] // 2)
    half.conv_out.weight[:outputs].zero_()
    half.conv_out.bias[:outputs].zero_()
    half.conv_out.weight[(slice(outputs), slice(colours), *centre)] = rows
    half.conv_out.weight[(slice(outputs), slice(colours, 2 * colours), *centre)] = -rows
