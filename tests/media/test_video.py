"""Encoded clips play in browsers and hold exactly the frames that went in."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ourvidz.errors import InternalError, InvalidParameters
from ourvidz.media import video
from ourvidz.media.boxes import top_level_boxes
from ourvidz.media.provenance import read_source_type, xmp_packet
from ourvidz.media.video import encode_mp4, probe, read_frames
from ourvidz.settings import environment

ROOT = Path(__file__).parents[2]

MakeClip = Callable[..., list[Image.Image]]


@pytest.fixture(scope="module")
def sunset() -> MakeClip:
    """Makes the frames of a clip whose colour changes from blue to red."""

    def make(frames: int = 9, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
        return [
            Image.new("RGB", size, (255 * k // max(1, frames - 1), 90, 255 - 255 * k // max(1, frames - 1)))
            for k in range(frames)
        ]

    return make


@pytest.fixture(scope="module")
def noisy() -> bytes:
    """A clip of noise, which does not compress: most of the file is frame data."""
    drawn = np.random.default_rng(0)
    return encode_mp4(
        [Image.fromarray(drawn.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(9)], fps=16
    )


def decode(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


@pytest.mark.parametrize(("frames", "fps"), [(1, 16), (2, 8), (3, 16), (5, 24), (17, 13), (83, 16)])
def test_a_clip_has_exactly_its_frames_at_its_rate(sunset: MakeClip, frames: int, fps: int) -> None:
    """Callers show the duration before they have the file; one frame more or less breaks loops."""
    actual = probe(encode_mp4(sunset(frames), fps=fps))
    assert (actual.frames, actual.fps, actual.width, actual.height) == (frames, Fraction(fps), 64, 48)
    assert actual.duration_s == frames / fps


def test_a_clip_plays_in_a_browser(sunset: MakeClip) -> None:
    """Every browser decodes H.264 in yuv420p; with the index first it starts before the download ends."""
    data = encode_mp4(sunset(), fps=16)
    actual = probe(data)
    assert (actual.codec, actual.pixel_format, actual.starts_fast) == ("h264", "yuv420p", True)
    names = [name for name, _ in top_level_boxes(data)]
    assert names[:2] == ["ftyp", "moov"]
    assert names.index("moov") < names.index("mdat")


def test_the_frames_come_back_in_order_and_in_colour(sunset: MakeClip) -> None:
    """The file declares its colour space: players that guess it would shift the colours."""
    frames = sunset(9)
    after_decoding = decode(encode_mp4(frames, fps=16))
    assert len(after_decoding) == 9
    for before, after in zip(frames, after_decoding, strict=True):
        assert np.abs(np.asarray(before).astype(int) - after).max() <= 8
    with av.open(io.BytesIO(encode_mp4(frames, fps=16))) as file:
        context = file.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)


def test_a_lower_rate_factor_keeps_more_detail(noisy: bytes) -> None:
    """The option `crf` reaches the encoder."""
    frames = [Image.fromarray(frame) for frame in decode(noisy)]
    fine, coarse = encode_mp4(frames, fps=16, crf=4), encode_mp4(frames, fps=16, crf=40)
    assert len(fine) > 2 * len(coarse)


def test_equal_clips_make_equal_files(sunset: MakeClip) -> None:
    """A second attempt must write the same file, so a file holds no time stamp."""
    assert encode_mp4(sunset(), fps=16) == encode_mp4(sunset(), fps=16)


ENCODE = """
import hashlib
import numpy
from PIL.Image import fromarray
from ourvidz.media.video import encode_mp4
draw = numpy.random.default_rng(0)
tiles = draw.integers(40, 215, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
moving = [numpy.roll(tiles, 3 * k, 1) + draw.integers(-15, 15, tiles.shape) for k in range(6)]
print(hashlib.sha256(encode_mp4([fromarray(frame.astype("uint8")) for frame in moving], fps=12)).hexdigest())
"""


def test_a_file_does_not_depend_on_what_was_in_memory_before() -> None:
    """A second attempt in another process must write the same file. `MALLOC_PERTURB_` makes GNU's C library
    fill memory with a pattern before it hands it out."""
    files = {
        subprocess.run(
            [sys.executable, "-c", ENCODE],
            env=environment(MALLOC_PERTURB_=pattern, PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for pattern in (None, "1", "85", "170")
    }
    assert len(files) == 1


@pytest.mark.parametrize("source", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"])
def test_a_clip_carries_its_digital_source_type(sunset: MakeClip, source: str) -> None:
    """Generated clips must be marked, and clips from a reference image have a mark of their own."""
    source_type = read_source_type(encode_mp4(sunset(3), fps=16, source=source))
    assert source_type == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


def test_ffmpeg_reads_the_xmp_packet(sunset: MakeClip) -> None:
    """FFmpeg looks where the specification puts XMP in an MP4: the packet is in the right place."""
    data = encode_mp4(sunset(3), fps=16)
    with av.open(io.BytesIO(data), options={"export_xmp": "1"}) as file:
        assert file.metadata["xmp"] == xmp_packet("trainedAlgorithmicMedia")
        assert sum(1 for _ in file.decode(video=0)) == 3


def test_a_clip_without_a_packet_has_no_source_type(noisy: bytes) -> None:
    """A camera's clip must not count as generated."""
    unmarked = noisy[: noisy.index(b"uuid") - 4]
    assert probe(unmarked).frames == 9
    assert read_source_type(unmarked) is None


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ([], "one or more frames of one size"),
        ([(64, 48), (48, 64)], "one or more frames of one size"),
        ([(63, 48)], "even sides"),
        ([(64, 47)], "even sides"),
    ],
)
def test_frames_that_make_no_clip_are_refused(sizes: list[tuple[int, int]], rule: str) -> None:
    """The encoder's own error speaks of pixel formats; some sizes it would crop silently."""
    with pytest.raises(InvalidParameters) as refused:
        encode_mp4([Image.new("RGB", size) for size in sizes], fps=16)
    assert (refused.value.field, refused.value.rule) == ("frames", rule)


@pytest.mark.parametrize("keep", [0, 40, 0.4, 0.8])
def test_a_truncated_file_is_an_error(noisy: bytes, keep: float) -> None:
    """Its index still lists all frames; only decoding shows that some are missing."""
    length = int(keep * len(noisy)) if isinstance(keep, float) else keep
    with pytest.raises(InternalError, match="cannot be read"):
        probe(noisy[:length])


def test_a_damaged_file_is_an_error(noisy: bytes) -> None:
    """Decoders conceal damage by default; a stored clip must not need that."""
    damaged = bytearray(noisy)
    half = slice(len(damaged) // 4, len(damaged) * 3 // 4)  # a few wrong bytes may decode without an error
    damaged[half] = bytes(byte ^ 0x5A for byte in damaged[half])
    with pytest.raises(InternalError, match="cannot be read"):
        probe(bytes(damaged))


@pytest.mark.parametrize("cut", [lambda data: data[:-2000], lambda data: data.replace(b"moov", b"mooo")])
def test_a_clip_that_came_out_broken_is_never_returned(
    sunset: MakeClip, noisy: bytes, monkeypatch: pytest.MonkeyPatch, cut: Callable[[bytes], bytes]
) -> None:
    """A full disk or a broken encoder fails the job; no file that does not play is stored."""
    encode = video._encode
    monkeypatch.setattr(video, "_encode", lambda *args: cut(encode(*args)))
    frames = [Image.fromarray(frame) for frame in decode(noisy)]
    with pytest.raises(InternalError):
        encode_mp4(frames, fps=16)


def test_a_clip_that_lost_frames_is_never_returned(sunset: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decodes without an error, and still is not what was encoded."""
    encode = video._encode
    monkeypatch.setattr(video, "_encode", lambda frames, *args: encode(frames[:-1], *args))
    with pytest.raises(InternalError, match="not what went in"):
        encode_mp4(sunset(5), fps=16)


@pytest.mark.parametrize(("limit", "read"), [(3, 3), (9, 9), (50, 9)])
def test_the_first_frames_of_a_file_are_read_in_order(
    sunset: MakeClip, tmp_path: Path, limit: int, read: int
) -> None:
    """No more than the limit is decoded: a source clip may be an hour long."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_mp4(sunset(9), fps=16))
    frames = read_frames(path, limit=limit)
    assert len(frames) == read
    for before, after in zip(sunset(9), frames, strict=False):
        assert np.abs(np.asarray(before).astype(int) - np.asarray(after)).max() <= 8


def test_a_clip_recorded_sideways_is_read_upright(sunset: MakeClip, tmp_path: Path) -> None:
    """Phones store the sensor's orientation and a rotation in the track header."""
    data = bytearray(encode_mp4(sunset(2), fps=16))
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, matrix)[0] == 1 << 16
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path = tmp_path / "phone.mp4"
    path.write_bytes(data)
    assert [frame.size for frame in read_frames(path, limit=2)] == [(48, 64)] * 2


@pytest.mark.parametrize("content", [b"", b"no clip at all", b"\0\0\0\x18ftypmp42"])
def test_a_file_that_is_no_video_is_an_error(tmp_path: Path, content: bytes) -> None:
    """OpenCV reports it as a clip without frames."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InternalError, match="cannot be read"):
        read_frames(path, limit=1)
    with pytest.raises(OSError, match="No such file"):
        read_frames(tmp_path / "missing.mp4", limit=1)
