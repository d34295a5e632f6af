"""The contact sheet of the demo."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFont

from ourvidz.cli.contact_sheet import CELL_PX, COLUMNS, FONT_PX, GAP_PX, contact_sheet, wrap_text

FONT = ImageFont.load_default(FONT_PX)
COLOURS = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def png(colour: tuple[int, int, int], size: tuple[int, int] = (128, 128)) -> bytes:
    data = BytesIO()
    Image.new("RGB", size, colour).save(data, "png")
    return data.getvalue()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_images_are_drawn_in_reading_order(count: int) -> None:
    """Each image must stand above its own caption."""
    sheet = contact_sheet([png(colour) for colour in COLOURS[:count]], ["one line"] * count)
    rows = -(-count // COLUMNS)
    step_y = (sheet.height - GAP_PX) // rows
    for index in range(count):
        x = GAP_PX + index % COLUMNS * (CELL_PX + GAP_PX) + CELL_PX // 2
        y = GAP_PX + index // COLUMNS * step_y + CELL_PX // 2
        assert sheet.getpixel((x, y)) == COLOURS[index]


def test_an_image_keeps_its_aspect_ratio() -> None:
    """A stretched image would hide exchanged width and height."""
    pixels = np.asarray(contact_sheet([png(COLOURS[0], (128, 96))], ["wide"]))
    positions = np.argwhere((pixels == COLOURS[0]).all(axis=-1))
    height, width = positions.max(axis=0) - positions.min(axis=0) + 1
    assert (width, height) == (CELL_PX, CELL_PX * 96 // 128)


def test_captions_are_below_the_images_and_inside_the_sheet() -> None:
    """A long caption must not be cut off at the edge."""
    long = "a small yellow star on a green background, at the top, beside nothing else at all " * 2
    uncaptioned = contact_sheet([png(COLOURS[0])], [""])
    captioned = np.asarray(contact_sheet([png(COLOURS[0])], [long]).convert("L"))
    ink = np.argwhere(captioned[GAP_PX + CELL_PX :] < 128)
    assert len(ink) > 500
    assert captioned.shape[0] > uncaptioned.height
    assert ink.max(axis=0)[1] < GAP_PX + CELL_PX + GAP_PX
    assert ink.max(axis=0)[0] < captioned.shape[0] - GAP_PX - CELL_PX - 1


def test_wrapped_lines_hold_all_words_and_fit() -> None:
    """No part of a prompt is left out."""
    text = "a purple ring on an orange background, at the right, crisp edges"
    lines = wrap_text(text, FONT, 120)
    assert " ".join(lines) == text
    assert len(lines) > 1
    assert all(FONT.getlength(line) <= 120 for line in lines)


def test_a_word_wider_than_the_line_has_its_own_line() -> None:
    """It is neither lost nor an endless loop."""
    assert wrap_text("a " + "x" * 90 + " b", FONT, 60) == ["a", "x" * 90, "b"]
