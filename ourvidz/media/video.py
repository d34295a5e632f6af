"""Clips as MP4 files that play in a browser: H.264, yuv420p, the index in front."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from PIL.Image import Image, fromarray

from ourvidz.errors import InternalError, InvalidParameters
from ourvidz.media.boxes import top_level, xmp_box
from ourvidz.media.provenance import Source, xmp_packet

CRF = 18
"""x264's constant rate factor: 0 loses nothing, 23 is its default, at 18 one hardly sees a difference."""
_BT709 = 1
"""The colours of HD video, in the numbers of ISO/IEC 23091-2. Players guess where a file does not say."""
_LIMITED_RANGE = 1
_REPEATABLE = {"x264-params": "mbtree=0"}
"""x264's macroblock tree reads memory that nobody has written: with it, equal frames make different files
from one time to the next, and a second attempt of a job would not write what the first one did. Without it
a clip of 480x832 px took a sixth more bytes at the same quality."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a video file really holds, counted by decoding it. Sizes are pixels."""

    frames: int
    fps: Fraction
    width: int
    height: int
    duration_s: float
    codec: str
    pixel_format: str
    starts_fast: bool


def mp4(
    frames: Sequence[Image], *, fps: int, crf: int = CRF, source: Source = "trainedAlgorithmicMedia"
) -> bytes:
    """The frames as an MP4 that says how it was made.

    What comes back has been decoded again: `InternalError` when it is not what went in,
    `InvalidParameters` when the frames are none, of several sizes, or of an odd size.
    """
    width, height = _size(frames)
    data = _encoded(frames, width, height, fps, crf) + xmp_box(xmp_packet(source))
    found = probe(data)
    wanted = Probe(
        frames=len(frames),
        fps=Fraction(fps),
        width=width,
        height=height,
        duration_s=len(frames) / fps,
        codec="h264",
        pixel_format="yuv420p",
        starts_fast=True,
    )
    if found != wanted:
        raise InternalError(f"The encoded clip is not what went in: {found} instead of {wanted}.")
    return data


def probe(data: bytes) -> Probe:
    """Decode a video file and say what is in it. `InternalError` when it cannot be decoded to its end."""
    try:
        with av.open(io.BytesIO(data), "r") as file:
            stream = file.streams.video[0]
            # Damaged pictures are patched up and counted unless they are errors.
            stream.codec_context.options = {"err_detect": "explode"}
            frames = sum(not frame.is_corrupt for frame in file.decode(stream))
            return Probe(
                frames=frames,
                fps=Fraction(stream.average_rate or 0),
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                duration_s=float((stream.duration or 0) * (stream.time_base or 0)),
                codec=stream.codec_context.name,
                pixel_format=stream.codec_context.pix_fmt or "",
                starts_fast=_starts_fast(data),
            )
    except (av.FFmpegError, IndexError) as error:
        raise InternalError(f"The video file cannot be read: {error}") from error


def read_frames(file: Path, *, most: int) -> list[Image]:
    """The first frames of a video file, RGB, at most so many. `InternalError` when it cannot be decoded,
    `OSError` when it cannot be read."""
    try:
        with av.open(str(file), "r") as opened:
            decoded = opened.decode(opened.streams.video[0])
            frames = [fromarray(frame.to_ndarray(format="rgb24")) for frame in islice(decoded, most)]
    except (av.FFmpegError, IndexError) as error:
        raise InternalError(f"The video file cannot be read: {error}") from error
    if not frames:
        raise InternalError("The video file has no frames.")
    return frames


def _size(frames: Sequence[Image]) -> tuple[int, int]:
    """Width and height of every frame."""
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise InvalidParameters(
            "A clip has one size.", field="frames", rule="one or more frames of one size", value=sorted(sizes)
        )
    width, height = sizes.pop()
    if width % 2 or height % 2:
        # yuv420p keeps one colour for two by two pixels.
        raise InvalidParameters(
            "A clip's sides are even.", field="frames", rule="even sides", value=f"{width}x{height}"
        )
    return width, height


def _encoded(frames: Sequence[Image], width: int, height: int, fps: int, crf: int) -> bytes:
    """The MP4 without its mark. Moving the index to the front reads the file again, so it needs a name."""
    with tempfile.TemporaryDirectory(prefix="ourvidz-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        # By default an MP4 counts its length in milliseconds, of which few frame rates make whole numbers.
        options = {"movflags": "+faststart", "movie_timescale": str(1000 * fps)}
        try:
            with av.open(str(path), "w", format="mp4", options=options) as file:
                stream = file.add_stream("libx264", rate=fps, options={"crf": str(crf), **_REPEATABLE})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = _LIMITED_RANGE
                for frame in frames:
                    file.mux(stream.encode(_yuv(frame)))
                file.mux(stream.encode())
        except av.FFmpegError as error:
            raise InternalError(f"The clip could not be encoded: {error}") from error
        return path.read_bytes()


def _yuv(frame: Image) -> av.VideoFrame:
    """The frame in the colours that the stream says it has."""
    rgb = av.VideoFrame.from_ndarray(np.asarray(frame.convert("RGB")), format="rgb24")
    return rgb.reformat(format="yuv420p", dst_colorspace=_BT709)


def _starts_fast(data: bytes) -> bool:
    """Whether the index comes before the pictures: a player can start before it has the whole file."""
    names = [name for name, _ in top_level(data)]
    return "moov" in names and "mdat" in names and names.index("moov") < names.index("mdat")
