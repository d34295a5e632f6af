"""Any allowed file as an RGB picture, upright and without transparency.

The bytes are a stranger's: what they claim is checked before pixels are made, and a decoder that stumbles
over them is an unusable reference, never a failed worker.
"""

from __future__ import annotations

import io

from PIL import Image
from PIL.Image import Transpose

from ourvidz import log
from ourvidz.errors import ReferenceFrameError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""AVIF is not among them: the frame inside may be far larger than its boxes say; only decoding tells."""
WORKING_PX = 2048
"""The shorter side of a large picture is made no smaller than this: the largest side a job may ask for."""
MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each one makes the decoder go over all pixels again."""

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


def begins_a_picture(head: bytes) -> bool:
    """Whether a file that begins with `head` (12 bytes or more) may be one of the allowed formats."""
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return webp or head.startswith(_MAGIC)


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame of a file as RGB, EXIF orientation applied, transparency flattened on white.

    Nothing but the pixels is left: no colour profile, no EXIF, no comment. Pictures whose shorter side is
    well over 2048 px come back smaller, aspect kept. `ReferenceFrameError` when the file is no picture of an
    allowed format, is damaged, or has more than `max_pixels` pixels; that is seen before any are made. At its
    peak this takes up to 18 bytes a pixel.
    """
    if data.startswith(b"\xff\xd8\xff") and data.count(b"\xff\xda") > MAX_SCANS:
        raise _unreadable("too many scans")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height <= max_pixels:
                return _plain(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(max_pixels) from None
    except Exception as broken:
        raise _unreadable(repr(broken)) from broken
    raise _too_large(max_pixels)


def _plain(opened: Image.Image) -> Image.Image:
    short = min(opened.size)
    if short > WORKING_PX:
        # JPEG alone can be decoded at a fraction of its size; elsewhere this does nothing.
        opened.draft(None, (opened.width * WORKING_PX // short, opened.height * WORKING_PX // short))
    opened.load()
    turned = _UPRIGHT.get(_orientation(opened))
    image = _rgb(opened)
    if (factor := min(image.size) // WORKING_PX) > 1:
        image = image.reduce(factor)
    image = image.transpose(turned) if turned is not None else image
    # Encoders write down what they find there: a stranger's profile, place and name, in our file.
    image.info = {}
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Converting at once would clip: everything but the darkest 1/256 would be white.
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples are measurements, not a picture")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", layered.size, "white")
    flat.paste(layered, mask=layered.getchannel("A"))
    return flat


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001  a damaged EXIF block is no reason to lose the picture
        return 1
    return found if isinstance(found, int) else 1


def _unreadable(why: str) -> ReferenceFrameError:
    _log.warning("reference_unreadable", reason=why)
    return ReferenceFrameError(
        UNREADABLE, field="reference", rule=f"an undamaged picture: {', '.join(FORMATS)}"
    )


def _too_large(max_pixels: int) -> ReferenceFrameError:
    return ReferenceFrameError(TOO_LARGE, field="reference", rule=f"at most {max_pixels:,} pixels")
