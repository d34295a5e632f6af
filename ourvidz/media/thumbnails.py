"""Thumbnails of images and clips."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL.Image import Image, fromarray

from ourvidz.errors import ThumbnailGenerationError
from ourvidz.media.provenance import DigitalSourceType, xmp_packet

LONGEST_PX = 256
QUALITY = 85

# Several threads encode at once beside the denoiser; a pool of threads in each call would slow that down.
cv2.setNumThreads(1)


def thumbnail(image: Image, *, source: DigitalSourceType = "trainedAlgorithmicMedia") -> bytes:
    """Encode a thumbnail as WEBP: longest edge at most 256 px, aspect kept, never enlarged.

    `source` is written into its XMP packet. Raises `ThumbnailGenerationError`.
    """
    try:
        file = io.BytesIO()
        _shrink(image.convert("RGB")).save(file, "WEBP", quality=QUALITY, xmp=xmp_packet(source).encode())
    except Exception as error:  # a thumbnail that fails must not fail the job, whatever the library raises
        raise ThumbnailGenerationError(f"No thumbnail could be made: {error}") from error
    return file.getvalue()


def clip_thumbnail(
    frames: Sequence[Image], *, source: DigitalSourceType = "trainedAlgorithmicMedia"
) -> bytes:
    """The thumbnail of a clip: frame n // 2 of its n frames, encoded as by `thumbnail`."""
    if not frames:
        raise ThumbnailGenerationError("No thumbnail could be made: the clip has no frames.")
    return thumbnail(frames[len(frames) // 2], source=source)


def _shrink(image: Image) -> Image:
    """The RGB image with its longest edge reduced to 256 px by averaging areas."""
    scale = LONGEST_PX / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return fromarray(cv2.resize(np.asarray(image), (width, height), interpolation=cv2.INTER_AREA))
