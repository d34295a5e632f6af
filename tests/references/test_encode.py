"""References are stored as their pixels alone."""

from __future__ import annotations

import io
import os

import pytest
from PIL import Image

from ourvidz.errors import PayloadTooLarge
from ourvidz.references.encode import encode

MIB = 1 << 20


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_the_pixels_are_kept_exactly() -> None:
    """An exact copy of a reference is that reference."""
    gradient = Image.linear_gradient("L").convert("RGB")
    encoded = encode(gradient, max_bytes=MIB)
    assert (encoded.extension, encoded.content_type) == ("png", "image/png")
    assert (encoded.width, encoded.height) == gradient.size
    assert opened(encoded.data).tobytes() == gradient.tobytes()


def test_nothing_but_pixels_is_written() -> None:
    """Encoders copy profiles and comments from an image's `info`."""
    image = Image.new("RGB", (8, 8), "teal")
    image.info = {"comment": b"here", "exif": b"Exif\0\0II*\0here", "icc_profile": b"here" * 40}
    encoded = encode(image, max_bytes=MIB)
    assert b"here" not in encoded.data
    assert opened(encoded.data).info == {}


def test_a_photograph_that_is_too_large_as_png_becomes_a_jpeg() -> None:
    """A stored reference is within the limit that workers read."""
    noise = Image.effect_noise((600, 600), 90).convert("RGB")
    encoded = encode(noise, max_bytes=500_000)
    assert (encoded.extension, encoded.content_type) == ("jpg", "image/jpeg")
    assert len(encoded.data) <= 500_000
    assert opened(encoded.data).size == (600, 600)


def test_what_is_too_large_in_both_formats_is_refused() -> None:
    """A long panorama of noise."""
    with pytest.raises(PayloadTooLarge):
        encode(Image.effect_noise((600, 600), 90).convert("RGB"), max_bytes=10_000)


@pytest.mark.parametrize(("size", "stored"), [((2200, 2060), (2187, 2048)), ((2048, 2400), (2048, 2400))])
def test_no_more_pixels_are_stored_than_a_job_can_use(size: tuple[int, int], stored: tuple[int, int]) -> None:
    """The shorter side is that of the largest job; the aspect is kept."""
    encoded = encode(Image.new("RGB", size, "teal"), max_bytes=MIB)
    assert (encoded.width, encoded.height) == stored


def test_an_image_that_no_jpeg_can_hold_is_too_large() -> None:
    """It was an internal error."""
    tall = Image.frombytes("RGB", (4, 66_000), os.urandom(4 * 66_000 * 3))
    with pytest.raises(PayloadTooLarge):
        encode(tall, max_bytes=10_000)
