"""How large a picture is rendered, and how a reference is brought to that size."""

from __future__ import annotations

from typing import Final

from PIL import ImageOps
from PIL.Image import Image, Resampling

MULTIPLE_PX = 8
SMALLEST_PX = 16
"""Below two latent pixels an edge cannot be halved inside the UNet."""

RESIZE_POLICY: Final = "center_crop"
"""What `center_crop` is called in the metadata of an asset."""


def capped(width_px: int, height_px: int, *, cap: int | None, multiple: int = MULTIPLE_PX) -> tuple[int, int]:
    """The size to render: as asked, or scaled down until the longest edge is `cap` pixels.

    The aspect is kept as far as edges of multiples of `multiple` px, at least 16, allow.
    """
    longest = max(width_px, height_px)
    if cap is None or longest <= cap:
        return width_px, height_px
    return _scaled(width_px, cap, longest, multiple), _scaled(height_px, cap, longest, multiple)


def center_crop(image: Image, width_px: int, height_px: int) -> Image:
    """`image` as RGB at exactly `width_px` x `height_px`: its middle, as much of it as has that aspect,
    resized with a Lanczos filter. A picture of that size keeps its pixels."""
    return ImageOps.fit(image.convert("RGB"), (width_px, height_px), Resampling.LANCZOS)


def _scaled(edge_px: int, cap: int, longest: int, multiple: int) -> int:
    """`edge_px · cap / longest` to the nearest multiple."""
    return max(SMALLEST_PX, round(edge_px * cap / longest / multiple) * multiple)
