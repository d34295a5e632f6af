"""Encodes decoded references for storage: the pixels alone."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL.Image import Image, Resampling

from ourvidz.errors import PayloadTooLarge
from ourvidz.references.decode import WORKING_PX

PNG_LEVEL = 1
"""zlib's fastest level; photographs hardly get smaller with slower ones."""
JPEG_QUALITY = 95
JPEG_MAX_PX = 65_500
"""Longest edge of a JPEG."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file with its size in pixels."""

    data: bytes
    extension: str
    content_type: str
    width: int
    height: int


def encode(image: Image, *, max_bytes: int) -> EncodedImage:
    """Encode an image as PNG, or as JPEG where that would exceed `max_bytes`. No metadata is written.

    An image whose shorter side is longer than 2048 px is scaled to that: no job uses more of it. Raises
    `PayloadTooLarge` for one that is too large in both formats.
    """
    image = _scaled(image)
    image.info = {}
    for kind, extension, options in (
        ("PNG", "png", {"compress_level": PNG_LEVEL}),
        ("JPEG", "jpg", {"quality": JPEG_QUALITY, "subsampling": 0}),
    ):
        if kind == "JPEG" and max(image.size) > JPEG_MAX_PX:
            continue
        file = io.BytesIO()
        image.save(file, kind, **options)
        data = file.getvalue()
        if len(data) <= max_bytes:
            return EncodedImage(data, extension, f"image/{kind.lower()}", *image.size)
    raise PayloadTooLarge("The reference is too large.", field="file", rule=f"at most {max_bytes:,} bytes")


def _scaled(image: Image) -> Image:
    """The image with a shorter side of at most 2048 px."""
    short = min(image.size)
    if short <= WORKING_PX:
        return image
    size = (image.width * WORKING_PX // short, image.height * WORKING_PX // short)
    return image.resize(size, Resampling.LANCZOS)
