"""Between frames and the latents of Wan's video VAE.

Latent frame 0 is frame 0 alone; latent frame k covers frames 4k − 3 to 4k. So the model makes 1, 5, 9, …
frames, and the surplus is cut off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray

from ourvidz.pipelines.sizes import center_crop

SHRINK_TIME = 4


def frames_to_generate(frames: int) -> int:
    """The smallest 4n + 1 that is at least `frames`."""
    return 1 + SHRINK_TIME * latent_frames_after_first(frames)


def latent_frames_after_first(frames: int) -> int:
    """How many latent frames follow the first in a clip of at least `frames` frames."""
    return -(-(frames - 1) // SHRINK_TIME)


def fitted(image: Image, width: int, height: int) -> torch.Tensor:
    """The picture cut around its centre to the aspect, and scaled: (3, height, width), -1 to 1."""
    cut = np.asarray(center_crop(image, width, height))
    pixels = torch.from_numpy(cut.copy()).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


def around(kept: dict[int, torch.Tensor], frames: int, width: int, height: int) -> torch.Tensor:
    """A grey clip with a picture, (3, height, width), at each of these frames: (3, frames, height, width)."""
    clip = torch.zeros(3, frames, height, width)
    for at, picture in kept.items():
        clip[:, at] = picture
    return clip


class Codec:
    """The VAE, with its latents brought to mean 0 and deviation 1, in single precision.

    The VAE keeps what it is at on itself, so one codec serves one thread.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._mean = self._per_channel(vae.config.latents_mean)
        self._deviation = self._per_channel(vae.config.latents_std)

    def shape(self, frames: int, width: int, height: int) -> tuple[int, ...]:
        """The shape of the latents of a clip: (1, channels, latent frames, rows, columns)."""
        shrink = self._vae.config.scale_factor_spatial
        return (
            1,
            self._vae.config.z_dim,
            1 + latent_frames_after_first(frames),
            height // shrink,
            width // shrink,
        )

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Width and height in pixels of latents of this shape."""
        shrink = self._vae.config.scale_factor_spatial
        return shape[4] * shrink, shape[3] * shrink

    def frames(self, shape: tuple[int, ...]) -> int:
        """How many frames latents of this shape stand for."""
        return 1 + SHRINK_TIME * (shape[2] - 1)

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Latents of this shape, on the VAE's device."""
        return torch.zeros(shape, device=self._vae.device, dtype=self._vae.dtype)

    def encode(self, picture: torch.Tensor, *, frames: int = 1) -> torch.Tensor:
        """The latents of a clip that shows `picture` for `frames` = 4n + 1 frames.

        `picture` is (3, height, width), -1 to 1.
        """
        placed = picture.to(self._vae.device, self._vae.dtype)
        return self.encode_clip(placed[:, None].expand(-1, frames, -1, -1))

    def encode_clip(self, clip: torch.Tensor) -> torch.Tensor:
        """The latents of a clip of 4n + 1 frames: (3, frames, height, width), -1 to 1."""
        pixels = clip.to(self._vae.device, self._vae.dtype)[None]
        try:
            latents = self._vae.encode(pixels).latent_dist.mode()
        finally:
            self._vae.clear_cache()  # a failed pass would leave its tensors on the VAE
        scaled: torch.Tensor = (latents - self._mean) / self._deviation
        return scaled

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The frames of a clip's latents: (frames, 3, height, width), -1 to 1."""
        try:
            clip = self._vae.decode(latents * self._deviation + self._mean, return_dict=False)[0]
        finally:
            self._vae.clear_cache()
        frames: torch.Tensor = clip[0].permute(1, 0, 2, 3)
        return frames

    def _per_channel(self, numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._vae.device, dtype=self._vae.dtype).view(1, -1, 1, 1, 1)


def pictures(frames: torch.Tensor) -> list[Image]:
    """RGB pictures from (frames, 3, height, width), -1 to 1."""
    levels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [fromarray(frame) for frame in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
