from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ourvidz.media.images import png
from ourvidz.media.provenance import source_type_of


@pytest.fixture
def hills() -> Image.Image:
    """A small landscape: two gradients."""
    across, down = np.meshgrid(np.arange(96), np.arange(64))
    pixels = np.stack([across * 2, down * 3, (across + down) % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def test_a_png_holds_every_pixel(hills: Image.Image) -> None:
    """PNG is chosen because it loses nothing."""
    with Image.open(io.BytesIO(png(hills))) as read:
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read), np.asarray(hills))


def test_equal_pictures_make_equal_files(hills: Image.Image) -> None:
    """A second attempt must write the same file: no time stamp may creep in."""
    assert png(hills) == png(hills.copy())


def test_what_a_picture_carried_does_not_leak_into_its_file(hills: Image.Image) -> None:
    """Prompts that some tool put into the picture's own text fields stay out."""
    hills.info["parameters"] = "a very private prompt"
    assert b"private" not in png(hills)


@pytest.mark.parametrize("source", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"])
def test_a_png_says_how_it_was_made(hills: Image.Image, source: str) -> None:
    """Machine-made pictures must say so, and edits of somebody's picture say that."""
    mark = source_type_of(png(hills, source=source))
    assert mark == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"
