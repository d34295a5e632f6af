"""Thumbnails fit into 256 px, keep the aspect, and fail only with an error of their own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ourvidz.errors import ThumbnailGenerationError
from ourvidz.media.provenance import VOCABULARY, read_source_type
from ourvidz.media.thumbnails import clip_thumbnail, thumbnail


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def differs_by(image: Image.Image, colour: tuple[int, int, int]) -> int:
    """The largest difference of a channel at one pixel of the image."""
    return max(abs(a - b) for a, b in zip(image.getpixel((9, 9)), colour, strict=True))


@pytest.mark.parametrize(
    ("size", "expected"),
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
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Lists reserve squares of 256 px; a smaller image is not enlarged."""
    assert read(thumbnail(Image.new("RGB", size, "seagreen"))).size == expected


def test_a_thumbnail_is_a_webp_of_the_same_image() -> None:
    """The channels keep their order when the image is reduced."""
    image = read(thumbnail(Image.new("RGB", (512, 512), (200, 40, 60))))
    assert image.format == "WEBP"
    assert differs_by(image, (200, 40, 60)) < 12


def test_fine_patterns_are_averaged() -> None:
    """Picking single pixels of a black and white pattern would show one of its colours."""
    across, down = np.meshgrid(np.arange(1024), np.arange(1024))
    checkerboard = Image.fromarray((255 * ((across + down) % 2)).astype(np.uint8))
    low, high = read(thumbnail(checkerboard)).convert("L").getextrema()
    assert low > 115
    assert high < 140


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_modes_are_accepted(mode: str) -> None:
    """References and masks may be grey or have a palette."""
    assert read(thumbnail(Image.new(mode, (300, 300)))).size == (256, 256)


def test_the_image_itself_is_not_changed() -> None:
    """The same image is encoded at full size after its thumbnail."""
    image = Image.new("RGB", (512, 512))
    thumbnail(image)
    assert image.size == (512, 512)


def test_a_thumbnail_carries_the_digital_source_type() -> None:
    """It is a generated image too."""
    assert read_source_type(thumbnail(Image.new("RGB", (8, 8)))) == VOCABULARY + "trainedAlgorithmicMedia"


def test_a_thumbnail_that_fails_has_its_own_error() -> None:
    """The job goes on without it, so this error must differ from all others."""
    with pytest.raises(ThumbnailGenerationError):
        thumbnail(Image.new("RGB", (0, 8)))


def test_a_pillow_without_webp_fails_thumbnails_and_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the library raises, here a `KeyError`, becomes a thumbnail error."""
    Image.init()
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(ThumbnailGenerationError):
        thumbnail(Image.new("RGB", (64, 64)))


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 17])
def test_a_clip_is_shown_by_its_middle_frame(frames: int) -> None:
    """The first one is often still empty."""
    clip = [Image.new("RGB", (64, 48), (250 * k // frames, 90, 120)) for k in range(frames)]
    image = read(clip_thumbnail(clip))
    assert image.size == (64, 48)
    assert differs_by(image, (250 * (frames // 2) // frames, 90, 120)) <= 8


def test_the_thumbnail_of_a_clip_has_the_form_of_an_images() -> None:
    """Lists show both side by side."""
    clip = [Image.new("RGB", (480, 832), (200, 40, 60))] * 3
    data = clip_thumbnail(clip, source="compositeWithTrainedAlgorithmicMedia")
    image = read(data)
    assert (image.format, image.size) == ("WEBP", (148, 256))
    assert differs_by(image, (200, 40, 60)) < 12
    assert read_source_type(data) == VOCABULARY + "compositeWithTrainedAlgorithmicMedia"


def test_a_clip_without_frames_has_no_thumbnail() -> None:
    """Its error is the thumbnail's, not an index out of range."""
    with pytest.raises(ThumbnailGenerationError):
        clip_thumbnail([])
