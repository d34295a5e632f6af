from __future__ import annotations

import io
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
from ourvidz.media.boxes import top_level
from ourvidz.media.provenance import source_type_of, xmp_packet
from ourvidz.media.video import mp4, probe
from ourvidz.settings import environment

ROOT = Path(__file__).parents[2]

MakeClip = Callable[..., list[Image.Image]]


@pytest.fixture(scope="module")
def sunset() -> MakeClip:
    """Makes clips of a sky that turns from blue to red."""

    def make(frames: int = 9, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
        return [
            Image.new("RGB", size, (255 * k // max(1, frames - 1), 90, 255 - 255 * k // max(1, frames - 1)))
            for k in range(frames)
        ]

    return make


@pytest.fixture(scope="module")
def noisy() -> bytes:
    """A clip that does not compress: most of the file is pictures."""
    drawn = np.random.default_rng(0)
    return mp4(
        [Image.fromarray(drawn.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(9)], fps=16
    )


def decoded(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


@pytest.mark.parametrize(("frames", "fps"), [(1, 16), (2, 8), (3, 16), (5, 24), (17, 13), (83, 16)])
def test_a_clip_has_exactly_its_frames_at_its_rate(sunset: MakeClip, frames: int, fps: int) -> None:
    """Callers show the duration before they have the file; one frame more or less breaks loops."""
    found = probe(mp4(sunset(frames), fps=fps))
    assert (found.frames, found.fps, found.width, found.height) == (frames, Fraction(fps), 64, 48)
    assert found.duration_s == frames / fps


def test_a_clip_plays_in_a_browser(sunset: MakeClip) -> None:
    """H.264 in yuv420p is what every browser decodes, and the index in front lets it start at once."""
    data = mp4(sunset(), fps=16)
    found = probe(data)
    assert (found.codec, found.pixel_format, found.starts_fast) == ("h264", "yuv420p", True)
    names = [name for name, _ in top_level(data)]
    assert names[:2] == ["ftyp", "moov"]
    assert names.index("moov") < names.index("mdat")


def test_the_frames_come_back_in_order_and_in_colour(sunset: MakeClip) -> None:
    """The colours are written down in the file: players that guess would shift them."""
    sent = sunset(9)
    got = decoded(mp4(sent, fps=16))
    assert len(got) == 9
    for before, after in zip(sent, got, strict=True):
        assert np.abs(np.asarray(before).astype(int) - after).max() <= 8
    with av.open(io.BytesIO(mp4(sent, fps=16))) as file:
        context = file.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)


def test_a_lower_rate_factor_is_nearer_to_the_picture(noisy: bytes) -> None:
    """The option reaches the encoder."""
    frames = [Image.fromarray(frame) for frame in decoded(noisy)]
    fine, coarse = mp4(frames, fps=16, crf=4), mp4(frames, fps=16, crf=40)
    assert len(fine) > 2 * len(coarse)


def test_equal_clips_make_equal_files(sunset: MakeClip) -> None:
    """A second attempt must write the same file: no time stamp may creep in."""
    assert mp4(sunset(), fps=16) == mp4(sunset(), fps=16)


ENCODE = """
import hashlib
import numpy
from PIL.Image import fromarray
from ourvidz.media.video import mp4
draw = numpy.random.default_rng(0)
tiles = draw.integers(40, 215, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
moving = [numpy.roll(tiles, 3 * k, 1) + draw.integers(-15, 15, tiles.shape) for k in range(6)]
print(hashlib.sha256(mp4([fromarray(frame.astype("uint8")) for frame in moving], fps=12)).hexdigest())
"""


def test_a_file_does_not_depend_on_what_was_in_memory_before() -> None:
    """A second attempt, in a process with another past, must write what the first one wrote. GNU's C library
    can fill memory with a pattern before it hands it out."""
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
def test_a_clip_says_how_it_was_made(sunset: MakeClip, source: str) -> None:
    """Machine-made clips must say so, and clips made from somebody's picture say that."""
    mark = source_type_of(mp4(sunset(3), fps=16, source=source))
    assert mark == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


def test_another_reader_finds_the_mark(sunset: MakeClip) -> None:
    """FFmpeg knows where XMP belongs in an MP4 from the specification, not from us."""
    data = mp4(sunset(3), fps=16)
    with av.open(io.BytesIO(data), options={"export_xmp": "1"}) as file:
        assert file.metadata["xmp"] == xmp_packet("trainedAlgorithmicMedia")
        assert sum(1 for _ in file.decode(video=0)) == 3


def test_a_clip_without_a_mark_has_none(noisy: bytes) -> None:
    """A camera's clip must not be called machine-made."""
    unmarked = noisy[: noisy.index(b"uuid") - 4]
    assert probe(unmarked).frames == 9
    assert source_type_of(unmarked) is None


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
    """The encoder would say something about pixel formats, or drop what does not fit."""
    with pytest.raises(InvalidParameters) as refused:
        mp4([Image.new("RGB", size) for size in sizes], fps=16)
    assert (refused.value.field, refused.value.rule) == ("frames", rule)


@pytest.mark.parametrize("keep", [0, 40, 0.4, 0.8])
def test_a_truncated_file_is_an_error(noisy: bytes, keep: float) -> None:
    """Its index still promises all frames; only decoding shows that they are not there."""
    length = int(keep * len(noisy)) if isinstance(keep, float) else keep
    with pytest.raises(InternalError, match="cannot be read"):
        probe(noisy[:length])


def test_a_damaged_file_is_an_error(noisy: bytes) -> None:
    """Decoders patch damage up and go on; a stored clip must not need that."""
    damaged = bytearray(noisy)
    half = slice(len(damaged) // 4, len(damaged) * 3 // 4)  # a few wrong bytes can be pictures as well
    damaged[half] = bytes(byte ^ 0x5A for byte in damaged[half])
    with pytest.raises(InternalError, match="cannot be read"):
        probe(bytes(damaged))


@pytest.mark.parametrize("cut", [lambda data: data[:-2000], lambda data: data.replace(b"moov", b"mooo")])
def test_a_clip_that_came_out_broken_is_never_handed_on(
    sunset: MakeClip, noisy: bytes, monkeypatch: pytest.MonkeyPatch, cut: Callable[[bytes], bytes]
) -> None:
    """A full disk or a broken encoder ends the job; the caller gets no file that does not play."""
    encoded = video._encoded
    monkeypatch.setattr(video, "_encoded", lambda *args: cut(encoded(*args)))
    frames = [Image.fromarray(frame) for frame in decoded(noisy)]
    with pytest.raises(InternalError):
        mp4(frames, fps=16)


def test_a_clip_that_lost_frames_is_never_handed_on(
    sunset: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decodes without a fault, and is still not what was asked for."""
    encoded = video._encoded
    monkeypatch.setattr(video, "_encoded", lambda frames, *args: encoded(frames[:-1], *args))
    with pytest.raises(InternalError, match="not what went in"):
        mp4(sunset(5), fps=16)
