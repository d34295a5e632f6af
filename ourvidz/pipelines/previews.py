"""What unfinished latents look like, without the VAE: a linear map from a latent to its colour."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from PIL import Image

LONGEST_PX = 128
_PATCH_PX = 16
"""Two latents wide, whichever VAE it is."""


class Encoder(Protocol):
    """Knows the latents of pictures."""

    def encode(self, image: Image.Image) -> torch.Tensor:
        """(1, channels, height / 8, width / 8) of an RGB picture."""


class LatentColours:
    """Colours of latents, learned from one VAE: its latents (channels, rows, columns) of a picture whose
    colours are known."""

    def __init__(self, latents: torch.Tensor, known: Image.Image) -> None:
        _, rows, columns = latents.shape
        seen = _with_one(latents.flatten(1).T.float().cpu())
        colours = np.asarray(known.resize((columns, rows), Image.Resampling.BOX), dtype=np.float32) / 255
        wanted = torch.from_numpy(colours).reshape(-1, 3)
        # torch's usual driver, gelsy, gave wrong answers now and then where a channel is idle.
        self._map: np.ndarray = torch.linalg.lstsq(seen, wanted, driver="gelsd").solution.numpy()

    def picture(self, latents: torch.Tensor) -> Image.Image:
        """A small RGB picture, longest edge 128 px, of latents (channels, rows, columns)."""
        _, rows, columns = latents.shape
        # Neither torch nor BLAS: on a thread that only draws they would start processors' worth of threads of
        # their own, which then spin beside those that denoise.
        colours = np.einsum("lc,ck->lk", latents.flatten(1).T.float().cpu().numpy(), self._map[:-1])
        levels = ((colours + self._map[-1]).clip(0, 1) * 255).round().astype(np.uint8)
        scale = LONGEST_PX / max(rows, columns)
        size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
        small = Image.fromarray(levels.reshape(rows, columns, 3))
        return small.resize(size, Image.Resampling.BICUBIC)


def learn_colours(encoder: Encoder) -> LatentColours:
    """The colours of one VAE's latents."""
    known = patchwork(16)
    return LatentColours(encoder.encode(known)[0], known)


def patchwork(patches: int) -> Image.Image:
    """A square of patches x patches evenly drawn colours of 16x16 px each, the same on every call."""
    drawn = np.random.default_rng(0).integers(0, 256, (patches, patches, 3), dtype=np.uint8)
    side = patches * _PATCH_PX
    return Image.fromarray(drawn).resize((side, side), Image.Resampling.NEAREST)


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """A last column of ones beside (latents, channels), for the constant part."""
    return torch.cat([latents, latents.new_ones(len(latents), 1)], dim=1)
