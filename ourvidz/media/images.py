"""Encoding of images as PNG."""

from __future__ import annotations

import io

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ourvidz.media.provenance import DigitalSourceType, xmp_packet

COMPRESSION = 1
"""zlib's fastest level: generated images are noisy, and slower levels hardly make them smaller."""


def encode_png(image: Image, *, source: DigitalSourceType = "trainedAlgorithmicMedia") -> bytes:
    """Encode an image as PNG with an XMP packet that names its source. Equal images make equal files."""
    text_chunks = PngInfo()
    text_chunks.add_itxt("XML:com.adobe.xmp", xmp_packet(source))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=COMPRESSION, pnginfo=text_chunks)
    return file.getvalue()
