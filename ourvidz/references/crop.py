"""Bringing a reference to the size of a job."""

from __future__ import annotations

from typing import Final

from PIL import ImageOps
from PIL.Image import Image, Resampling

RESIZE_POLICY: Final = "center_crop"
"""How `center_crop` is called in the metadata of an asset."""


def center_crop(image: Image, width: int, height: int) -> Image:
    """`image` at exactly `width` x `height` px: its middle, as much of it as has that aspect, resized with
    a Lanczos filter."""
    return ImageOps.fit(image, (width, height), Resampling.LANCZOS)
