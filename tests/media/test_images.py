"""PNG files keep every pixel and name their digital source type."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ourvidz.media.images import encode_png
from ourvidz.media.provenance import read_source_type


@pytest.fixture
def hills() -> Image.Image:
    """A small image of two gradients."""
    across, down = np.meshgrid(np.arange(96), np.arange(64))
    pixels = np.stack([across * 2, down * 3, (across + down) % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def test_a_png_holds_every_pixel(hills: Image.Image) -> None:
    """PNG is lossless; the encoder must not convert the image."""
    with Image.open(io.BytesIO(encode_png(hills))) as read:
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read), np.asarray(hills))


def test_equal_images_make_equal_files(hills: Image.Image) -> None:
    """A second attempt must write the same file, so a file holds no time stamp."""
    assert encode_png(hills) == encode_png(hills.copy())


def test_metadata_of_the_image_is_not_written(hills: Image.Image) -> None:
    """Prompts that another tool stored in the image's text fields stay out of the file."""
    hills.info["parameters"] = "a very private prompt"
    assert b"private" not in encode_png(hills)


@pytest.mark.parametrize("source", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"])
def test_a_png_carries_its_digital_source_type(hills: Image.Image, source: str) -> None:
    """Generated images must be marked, and images from a reference have a mark of their own."""
    source_type = read_source_type(encode_png(hills, source=source))
    assert source_type == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"
