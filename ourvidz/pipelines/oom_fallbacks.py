"""Fallbacks for out-of-memory errors, in the order in which they are tried. None reduces the image size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PAIR_DECODE_MAX_PX = 512 * 512
"""Two images are decoded in one VAE pass if they have at most this many pixels together: one such image
alone does not use a GPU fully."""


@dataclass(frozen=True, slots=True)
class OomFallback:
    """One way to run a job: up to `batch_size` images per denoising batch, the VAE with or without tiling.

    `name` is the value of `memory_rung` in the callback's metadata.
    """

    name: Literal["whole", "freed", "tiled", "parts"]
    batch_size: int
    vae_tiling: bool

    def decode_batch_size(self, pixels: int) -> int:
        """How many images of `pixels` pixels the VAE decodes in one pass, 1 or 2.

        At most 2, because decoded images are stored while the next ones are decoded. Large images are decoded
        one by one: the VAE needs more memory per image than the UNet.
        """
        return 2 if self.name == "whole" and 2 * pixels <= PAIR_DECODE_MAX_PX else 1


def oom_fallbacks(images: int, *, vae_tiling: bool = False) -> Iterator[OomFallback]:
    """The fallbacks for a job of `images` images: one batch, one batch after freeing caches, one batch with a
    tiled VAE, then batches of half the previous size down to one image. `vae_tiling`: only those with a tiled
    VAE."""
    if not vae_tiling:
        yield OomFallback("whole", images, vae_tiling=False)
        yield OomFallback("freed", images, vae_tiling=False)
    yield OomFallback("tiled", images, vae_tiling=True)
    while images > 1:
        images = (images + 1) // 2
        yield OomFallback("parts", images, vae_tiling=True)
