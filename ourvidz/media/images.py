"""Pictures as PNG files."""

from __future__ import annotations

import io

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ourvidz.media.provenance import Source, xmp_packet

COMPRESSION = 1
"""zlib's fastest: a generated picture is noisy, and slower levels hardly make it smaller."""


def png(image: Image, *, source: Source = "trainedAlgorithmicMedia") -> bytes:
    """The picture as a PNG that says how it was made."""
    marks = PngInfo()
    marks.add_itxt("XML:com.adobe.xmp", xmp_packet(source))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=COMPRESSION, pnginfo=marks)
    return file.getvalue()
