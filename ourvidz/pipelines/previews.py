"""Previews of unfinished latents without the VAE: a linear map from latent channels to RGB."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from PIL import Image

LONGEST_EDGE_PX = 128
PATCHES = 6
"""Patches per side of the calibration image: over a hundred latents, for a map of at most 17 values a
colour. More of them cost time at every start and make previews hardly better."""
_PATCH_PX = 16
"""Two latents wide: each patch has at least one latent that does not touch its neighbours."""


class ImageEncoder(Protocol):
    """The encoder half of a VAE."""

    def encode(self, image: Image.Image) -> torch.Tensor:
        """Latents of an RGB image, (1, channels, height / 8, width / 8)."""


class LatentPreviewer:
    """Maps the latents of one VAE to RGB by linear regression.

    `latents` are (channels, rows, columns), the VAE's latents of the image `image`.
    """

    def __init__(self, latents: torch.Tensor, image: Image.Image) -> None:
        _, rows, columns = latents.shape
        samples = _with_bias_column(latents.flatten(1).T.float().cpu())
        rgb = np.asarray(image.resize((columns, rows), Image.Resampling.BOX), dtype=np.float32) / 255
        targets = torch.from_numpy(rgb).reshape(-1, 3)
        # torch's default driver, gelsy, gives wrong results now and then when a channel is constant.
        self._weights: np.ndarray = torch.linalg.lstsq(samples, targets, driver="gelsd").solution.numpy()

    def render(self, latents: torch.Tensor) -> Image.Image:
        """An RGB preview, longest edge 128 px, of latents (channels, rows, columns)."""
        _, rows, columns = latents.shape
        # numpy's einsum, not torch or BLAS: this runs on a thread that only renders previews, where those two
        # would start thread pools of their own that compete with denoising.
        rgb = np.einsum("lc,ck->lk", latents.flatten(1).T.float().cpu().numpy(), self._weights[:-1])
        levels = ((rgb + self._weights[-1]).clip(0, 1) * 255).round().astype(np.uint8)
        scale = LONGEST_EDGE_PX / max(rows, columns)
        size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
        small = Image.fromarray(levels.reshape(rows, columns, 3))
        return small.resize(size, Image.Resampling.BICUBIC)


def fit_previewer(encoder: ImageEncoder) -> LatentPreviewer:
    """A previewer for the latents of this encoder."""
    image = calibration_image(PATCHES)
    return LatentPreviewer(encoder.encode(image)[0], image)


def calibration_image(patches: int) -> Image.Image:
    """A square of `patches` x `patches` random RGB patches of 16x16 px each; the same on every call."""
    rgb = np.random.default_rng(0).integers(0, 256, (patches, patches, 3), dtype=np.uint8)
    side = patches * _PATCH_PX
    return Image.fromarray(rgb).resize((side, side), Image.Resampling.NEAREST)


def _with_bias_column(samples: torch.Tensor) -> torch.Tensor:
    """(samples, channels) with a last column of ones."""
    return torch.cat([samples, samples.new_ones(len(samples), 1)], dim=1)
