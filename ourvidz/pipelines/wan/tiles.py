"""Wan's VAE in pieces, where the whole clip does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LARGEST_PX = 256
SMALLEST_PX = 32


@contextmanager
def tiled(vae: Any, wanted: bool, size: tuple[int, int]) -> Iterator[None]:
    """Work in overlapping tiles for a while: less memory, seams that are blended.

    A tile is 256 px wide and high, or half the longest edge of `size` (pixels) where that is less: diffusers'
    own tiles are as large as a small clip, which would stay whole. They overlap by a quarter.
    """
    if not wanted:
        yield
        return
    names = [f"tile_sample_{what}_{side}" for what in ("min", "stride") for side in ("height", "width")]
    before = {name: getattr(vae, name) for name in names}
    tile = min(LARGEST_PX, max(SMALLEST_PX, max(size) // 2 // SMALLEST_PX * SMALLEST_PX))
    stride = tile * 3 // 4
    vae.enable_tiling(tile, tile, stride, stride)
    try:
        yield
    finally:
        vae.disable_tiling()
        for name, value in before.items():
            setattr(vae, name, value)
