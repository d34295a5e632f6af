"""Latent channels that encode absolute position.

Wan's transformer has relative position embeddings only. In a clip of eighty tokens, nearly all noise, left
and right and the first frame are the last things it learns: after thousands of steps the colours were right
and nothing moved. Here the last three latent channels mark the edges of the image and the beginning of the
clip. The encoder derives them from the zero padding of its convolutions; the decoder ignores them.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

CHANNELS = 3
"""Horizontal, vertical and temporal position: the last latent channels."""

PREVIOUS_FRAME = 0.75
"""How much each of the two previous frames lowers the temporal channel of a frame."""

LOG_VARIANCE = -7.0


@torch.no_grad()
def initialize_position_channels(vae: diffusers.AutoencoderKLWan, clips: torch.Tensor) -> None:
    """Set the last three latent channels to -1 at the left edge and 1 at the right; -1 at the top and 1 at
    the bottom; 1 in the first latent frame, 0.25 in the second and -0.5 afterwards.

    `clips` are examples, (n, 3, frames, height, width), from which a constant feature is found.
    """
    latents, features = _encode(vae, clips)
    constant = _most_constant_channel(features)
    unit = 1 / features[:, constant].mean()
    horizontal, vertical, temporal = range(vae.config.z_dim - CHANNELS, vae.config.z_dim)
    conv = vae.encoder.conv_out
    for channel in (horizontal, vertical, temporal):
        conv.weight[channel].zero_()
        conv.bias[channel].zero_()
        _isolate(vae, channel, mean=latents[:, channel].mean())
    current = -1
    for channel, before, after in ((horizontal, (1, 0), (1, 2)), (vertical, (0, 1), (2, 1))):
        conv.weight[(channel, constant, current, *before)] = unit
        conv.weight[(channel, constant, current, *after)] = -unit
    conv.weight[temporal, constant, :, 1, 1] = torch.stack(
        [-PREVIOUS_FRAME * unit, -PREVIOUS_FRAME * unit, unit]
    )


def _encode(vae: diffusers.AutoencoderKLWan, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of the clips and the inputs of the encoder's last convolution, both (n, channels, frames,
    rows, columns)."""
    features: list[torch.Tensor] = []
    hook = vae.encoder.conv_out.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    latents = vae.encode(clips).latent_dist.mode()
    hook.remove()
    return latents, torch.cat(features, dim=2)


def _most_constant_channel(features: torch.Tensor) -> int:
    """The index of the channel with the largest ratio of mean to deviation."""
    axes = (0, 2, 3, 4)
    return int((features.mean(dim=axes).abs() / features.std(dim=axes)).argmax())


def _isolate(vae: Any, channel: int, *, mean: torch.Tensor) -> None:
    """Separate a latent channel from all others in the convolutions before and after the latents.

    Its mean depends on the same channel of the encoder's last convolution only, and its log variance is
    constant. The decoder ignores it: the constant `mean` is used in its place.
    """
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:, channel].zero_()
    for row, bias in ((channel, 0.0), (vae.config.z_dim + channel, LOG_VARIANCE)):
        before.weight[row].zero_()
        before.bias[row] = bias
    before.weight[channel, channel] = 1
    after.bias += after.weight[:, channel, 0, 0, 0] * mean
    after.weight[:, channel].zero_()
