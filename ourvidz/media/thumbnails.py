"""Small pictures for lists."""

from __future__ import annotations

import io
import tempfile

import cv2
from PIL.Image import Image, Resampling, fromarray

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
    except Exception as error:  # whatever it is: the picture itself is there
        raise ThumbnailGenerationError(f"No thumbnail could be made: {error}") from error
    return file.getvalue()


def video_thumbnail(clip: bytes, *, source: Source = "trainedAlgorithmicMedia") -> bytes:
    """The same of a video file's middle frame. `ThumbnailGenerationError` when it cannot be read."""
    try:
        return thumbnail(middle_frame(clip), source=source)
    except (cv2.error, OSError) as error:
        raise ThumbnailGenerationError(f"No thumbnail could be made: {error}") from error


def middle_frame(clip: bytes) -> Image:
    """Frame n // 2 of the n frames of a video file, RGB."""
    # OpenCV also reads from a buffer, but does not keep it alive: it can take the process down.
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(clip)
        file.flush()
        video = cv2.VideoCapture(file.name)
        video.set(cv2.CAP_PROP_POS_FRAMES, int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // 2)
        found, frame = video.read()
        video.release()
    if not found:
        raise ThumbnailGenerationError("No thumbnail could be made: the clip has no frame in its middle.")
    return fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
