"""Small pictures for lists."""

from __future__ import annotations

import io

from PIL.Image import Image, Resampling

from ourvidz.errors import ThumbnailGenerationError
from ourvidz.media.provenance import Source, xmp_packet

LONGEST_PX = 256
QUALITY = 85


def thumbnail(image: Image, *, source: Source = "trainedAlgorithmicMedia") -> bytes:
    """A WEBP of the picture, its longest edge at most 256 px, aspect kept, never enlarged.

    `ThumbnailGenerationError` when the picture cannot be made small or encoded.
    """
    try:
        small = image.convert("RGB")
        small.thumbnail((LONGEST_PX, LONGEST_PX), Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=QUALITY, xmp=xmp_packet(source).encode())
    except (OSError, ValueError, MemoryError) as error:
        raise ThumbnailGenerationError(f"No thumbnail could be made: {error}") from error
    return file.getvalue()
