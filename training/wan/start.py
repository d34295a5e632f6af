"""Where the VAE starts from: an autoencoder of block averages instead of noise.

As for tiny-sdxl, the colours and their negatives are wired straight through, beside two constants that keep
the norms from hiding how bright anything is. Here every level has a shortcut that averages or repeats on its
own, so that what is wired is the way into the first level, the way out of the last, and silence between.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock

COLOURS = 3
WIRED = 2 * COLOURS + 2
"""Colours, their negatives and the two constants."""
REFERENCE = 3.0
QUIET = 0.3
"""What is not wired starts this much weaker: the norms are over all channels."""
LOG_VARIANCE = -7.0


@torch.no_grad()
def wire_colours_through(vae: diffusers.AutoencoderKLWan) -> None:
    """Make `vae` return about the average colour of every block of 8x8 pixels and 4 frames."""
    patch = vae.config.patch_size**2
    signs = torch.cat([torch.eye(COLOURS), -torch.eye(COLOURS)])
    _lead(vae.encoder.conv_in, signs.repeat_interleave(patch, dim=1) / patch)
    halves = vae.encoder.norm_out.gamma.shape[0] // vae.encoder.conv_in.out_channels
    _lead(vae.decoder.conv_in, _with_spare(signs.repeat_interleave(halves, dim=1) / halves, vae.config.z_dim))
    _silence_between(vae.encoder, WIRED * halves)
    _silence_between(vae.decoder, WIRED)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[: vae.config.z_dim, : vae.config.z_dim, 0, 0, 0] = torch.eye(vae.config.z_dim)
    vae.quant_conv.bias[vae.config.z_dim :] = LOG_VARIANCE
    clip = torch.rand(4, COLOURS, 9, 32, 32) * 2 - 1
    _read_out(vae, "encoder", torch.eye(COLOURS * halves), clip)
    _read_out(vae, "decoder", torch.eye(COLOURS).repeat_interleave(patch, dim=0), clip)


def _lead(conv: Any, rows: torch.Tensor) -> None:
    """The first channels out are `rows` times the channels in, at this very frame and place; then come the
    constants."""
    conv.weight[:WIRED].zero_()
    conv.bias[:WIRED].zero_()
    conv.weight[: len(rows), :, -1, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2] = rows
    conv.bias[len(rows) : WIRED] = REFERENCE


def _with_spare(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """`rows` for a layer that has more channels in than they use."""
    wide = torch.zeros(len(rows), columns)
    wide[:, : rows.shape[1]] = rows
    return wide


def _silence_between(half: Any, wired: int) -> None:
    """What lies between the ends adds nothing to the wired channels, and little to the others."""
    for part in half.modules():
        if isinstance(part, WanResidualBlock):
            _silence(part.conv2, wired)
            if not isinstance(part.conv_shortcut, torch.nn.Identity):
                _pass_on(part.conv_shortcut, wired)
        elif isinstance(part, WanAttentionBlock):
            _silence(part.proj, wired)
        elif isinstance(part, WanResample):
            _silence(part.resample[1], wired)
            if part.mode == "downsample3d":
                _silence(part.time_conv, wired)


def _silence(layer: Any, wired: int) -> None:
    layer.weight *= QUIET
    layer.bias *= QUIET
    layer.weight[:wired].zero_()
    layer.bias[:wired].zero_()


def _pass_on(conv: Any, wired: int) -> None:
    """The wired channels out are the wired channels in."""
    conv.weight[:wired].zero_()
    conv.bias[:wired].zero_()
    conv.weight[:wired, :wired, 0, 0, 0] = torch.eye(wired)


def _read_out(vae: diffusers.AutoencoderKLWan, name: str, rows: torch.Tensor, clip: torch.Tensor) -> None:
    """Undo the last norm and take colour minus negative: silu(x) - silu(-x) = x.

    `rows` are the channels out of every channel that carries a colour.
    """
    half = getattr(vae, name)
    seen: list[torch.Tensor] = []
    hook = half.norm_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vae.decode(vae.encode(clip).latent_dist.mode())
    hook.remove()
    length = torch.cat(seen, dim=2).norm(dim=1).mean()
    half.norm_out.gamma[:] = length / half.norm_out.scale
    outs, carriers = rows.shape
    here = (-1, half.conv_out.kernel_size[1] // 2, half.conv_out.kernel_size[2] // 2)
    half.conv_out.weight[:outs].zero_()
    half.conv_out.bias[:outs].zero_()
    half.conv_out.weight[(slice(outs), slice(carriers), *here)] = rows
    half.conv_out.weight[(slice(outs), slice(carriers, 2 * carriers), *here)] = -rows
