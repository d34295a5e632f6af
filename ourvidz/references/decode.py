"""Decodes untrusted image files into upright, opaque RGB images.

Sizes that a file declares are checked before any pixels are decoded. Every exception of a decoder becomes an
unusable reference and never fails the worker.
"""

from __future__ import annotations

import io

from PIL import Image
from PIL.Image import Transpose

from ourvidz import log
from ourvidz.errors import ReferenceFrameError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Without AVIF: the frame inside may be far larger than the container declares."""
WORKING_PX = 2048
"""Large images are reduced, but their shorter side stays at least this long: the largest side of a job."""
MAX_SCANS = 100
"""A progressive JPEG has about ten scans, and for each the decoder processes all pixels again."""

UNREADABLE = "The reference is not a picture that can be read."
TOO_LARGE = "The reference has too many pixels."

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_log = log.get(__name__)


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with `head` (12 bytes or more) has the signature of an allowed format."""
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return webp or head.startswith(_MAGIC)


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode the first frame of a file to RGB, with EXIF orientation applied and transparency on white.

    The image has no metadata: no colour profile, EXIF or comment. If its shorter side is 4096 px or more, it
    is reduced by a whole factor. Raises `ReferenceFrameError` if the file has no allowed format, is damaged,
    or declares more than `max_pixels` pixels. Peak memory is up to 18 bytes per pixel.
    """
    if data.startswith(b"\xff\xd8\xff") and data.count(b"\xff\xda") > MAX_SCANS:
        raise _unreadable("too many scans")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height <= max_pixels:
                return _to_upright_rgb(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(max_pixels) from None
    except Exception as error:
        raise _unreadable(repr(error)) from error
    raise _too_large(max_pixels)


def _to_upright_rgb(opened: Image.Image) -> Image.Image:
    """The image in RGB, rotated by its EXIF orientation, reduced to the working size, without metadata."""
    short = min(opened.size)
    if short > WORKING_PX:
        # JPEGs can be decoded at a fraction of their size; for other formats this does nothing.
        opened.draft(None, (opened.width * WORKING_PX // short, opened.height * WORKING_PX // short))
    opened.load()
    transpose = _UPRIGHT.get(_orientation(opened))
    image = _to_rgb(opened)
    if (factor := min(image.size) // WORKING_PX) > 1:
        image = image.reduce(factor)
    image = image.transpose(transpose) if transpose is not None else image
    # Encoders would copy it into our files: colour profile, location, author.
    image.info = {}
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB: 16-bit levels scaled, transparency on white. `ValueError` for 32-bit samples."""
    if image.mode.startswith("I;16"):
        # A direct conversion would clip: all but the darkest 1/256 of the values would be white.
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples are measurements, not an image")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    opaque = Image.new("RGB", rgba.size, "white")
    opaque.paste(rgba, mask=rgba.getchannel("A"))
    return opaque


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001  a damaged EXIF block does not make the image unusable
        return 1
    return orientation if isinstance(orientation, int) else 1


def _unreadable(reason: str) -> ReferenceFrameError:
    _log.warning("reference_unreadable", reason=reason)
    return ReferenceFrameError(
        UNREADABLE, field="reference", rule=f"an undamaged picture: {', '.join(FORMATS)}"
    )


def _too_large(max_pixels: int) -> ReferenceFrameError:
    return ReferenceFrameError(TOO_LARGE, field="reference", rule=f"at most {max_pixels:,} pixels")
