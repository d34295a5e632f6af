"""Latents that know where they are.

Wan's transformer tells places apart by how far they lie from each other, never by where they are. In a clip
of eighty tokens that are nearly all noise, where left is and which frame comes first is then the last thing
it learns: after thousands of steps the colours were right and nothing moved. Here the last three latent
channels mark the edges of the picture and the beginning of the clip. They are made of what convolutions know
anyway, that beyond the edge there are zeros; the decoder does not listen to them.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

MARKS = 3
"""Across, down and along: the last latent channels."""

BEFORE = 0.75
"""How much each of the two frames before takes off the mark of a frame."""

LOG_VARIANCE = -7.0


@torch.no_grad()
def mark_places(vae: diffusers.AutoencoderKLWan, clips: torch.Tensor) -> None:
    """Make the last three channels say -1 at the left edge and 1 at the right; -1 at the top and 1 at the
    bottom; 1 in the first latent frame, 0.25 in the second, -0.5 after it. `clips` are examples,
    (n, 3, frames, height, width)."""
    latents, features = _looked_at(vae, clips)
    steady = _steadiest(features)
    unit = 1 / features[:, steady].mean()
    across, down, along = range(vae.config.z_dim - MARKS, vae.config.z_dim)
    conv = vae.encoder.conv_out
    for channel in (across, down, along):
        conv.weight[channel].zero_()
        conv.bias[channel].zero_()
        _take_alone(vae, channel, mean=latents[:, channel].mean())
    now = -1
    for channel, before, after in ((across, (1, 0), (1, 2)), (down, (0, 1), (2, 1))):
        conv.weight[(channel, steady, now, *before)] = unit
        conv.weight[(channel, steady, now, *after)] = -unit
    conv.weight[along, steady, :, 1, 1] = torch.stack([-BEFORE * unit, -BEFORE * unit, unit])


def _looked_at(vae: diffusers.AutoencoderKLWan, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of some clips, and what the encoder's last convolution saw: (n, channels, frames, rows,
    columns)."""
    seen: list[torch.Tensor] = []
    hook = vae.encoder.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    latents = vae.encode(clips).latent_dist.mode()
    hook.remove()
    return latents, torch.cat(seen, dim=2)


def _steadiest(features: torch.Tensor) -> int:
    """The channel that is most nearly the same everywhere."""
    places = (0, 2, 3, 4)
    return int((features.mean(dim=places).abs() / features.std(dim=places)).argmax())


def _take_alone(vae: Any, channel: int, *, mean: torch.Tensor) -> None:
    """Let a latent channel be what the encoder's last convolution says, and be heard by nobody: the decoder
    gets its mean instead."""
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:, channel].zero_()
    for row, bias in ((channel, 0.0), (vae.config.z_dim + channel, LOG_VARIANCE)):
        before.weight[row].zero_()
        before.bias[row] = bias
    before.weight[channel, channel] = 1
    after.bias += after.weight[:, channel, 0, 0, 0] * mean
    after.weight[:, channel].zero_()
