from __future__ import annotations

import io

import pytest
from PIL import Image

from ourvidz.errors import ThumbnailGenerationError
from ourvidz.media.provenance import VOCABULARY, source_type_of
from ourvidz.media.thumbnails import middle_frame, thumbnail, video_thumbnail
from ourvidz.media.video import mp4


def read(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((1024, 1024), (256, 256)),
        ((1024, 512), (256, 128)),
        ((480, 832), (148, 256)),
        ((256, 256), (256, 256)),
        ((64, 40), (64, 40)),
        ((2048, 1), (256, 1)),
    ],
)
def test_a_thumbnail_fits_into_256_pixels_and_keeps_the_aspect(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    """Lists lay out squares of 256 px; a small picture is not blown up."""
    assert read(thumbnail(Image.new("RGB", size, "seagreen"))).size == small


def test_a_thumbnail_is_a_webp_of_the_same_picture() -> None:
    """The colours must survive the way down."""
    picture = read(thumbnail(Image.new("RGB", (512, 512), (200, 40, 60))))
    assert picture.format == "WEBP"
    assert all(abs(a - b) < 12 for a, b in zip(picture.getpixel((9, 9)), (200, 40, 60), strict=True))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_modes_are_fine(mode: str) -> None:
    """References and masks may come as greys or palettes."""
    assert read(thumbnail(Image.new(mode, (300, 300)))).size == (256, 256)


def test_the_picture_itself_stays_as_it_is() -> None:
    """The thumbnail is made after the file is stored, and previews may follow."""
    picture = Image.new("RGB", (512, 512))
    thumbnail(picture)
    assert picture.size == (512, 512)


def test_a_thumbnail_says_how_it_was_made() -> None:
    """It is a machine-made picture too."""
    assert source_type_of(thumbnail(Image.new("RGB", (8, 8)))) == VOCABULARY + "trainedAlgorithmicMedia"


def test_an_impossible_thumbnail_has_its_own_error() -> None:
    """The job goes on without it, so this failure must be told from the others."""
    with pytest.raises(ThumbnailGenerationError):
        thumbnail(Image.new("RGB", (0, 8)))


def test_a_pillow_without_webp_makes_no_thumbnails_and_fails_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the library raises, here a KeyError, it is the thumbnail that failed."""
    Image.init()
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(ThumbnailGenerationError):
        thumbnail(Image.new("RGB", (64, 64)))


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 17])
def test_a_clip_is_shown_by_its_middle_frame(frames: int) -> None:
    """The first one is often still empty. Frames are stored out of order, so finding it takes decoding."""
    clip = mp4([Image.new("RGB", (64, 48), (250 * k // frames, 90, 120)) for k in range(frames)], fps=16)
    found = middle_frame(clip)
    assert found.size == (64, 48)
    expected = (250 * (frames // 2) // frames, 90, 120)
    assert all(abs(a - b) <= 8 for a, b in zip(found.getpixel((9, 9)), expected, strict=True))


def test_a_clip_s_thumbnail_is_like_a_picture_s() -> None:
    """Lists show both side by side."""
    clip = mp4([Image.new("RGB", (480, 832), (200, 40, 60))] * 3, fps=16)
    data = video_thumbnail(clip, source="compositeWithTrainedAlgorithmicMedia")
    small = read(data)
    assert (small.format, small.size) == ("WEBP", (148, 256))
    assert all(abs(a - b) < 12 for a, b in zip(small.getpixel((9, 9)), (200, 40, 60), strict=True))
    assert source_type_of(data) == VOCABULARY + "compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize("clip", [b"", b"no clip at all"])
def test_a_clip_that_cannot_be_read_has_no_thumbnail(clip: bytes) -> None:
    """The job goes on without it."""
    with pytest.raises(ThumbnailGenerationError):
        video_thumbnail(clip)
