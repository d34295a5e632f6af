"""The picture that shows what the demo made."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFont

from ourvidz.cli.contact_sheet import CELL_PX, COLUMNS, FONT_PX, GAP_PX, contact_sheet, lines

FONT = ImageFont.load_default(FONT_PX)
COLOURS = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def file(colour: tuple[int, int, int], size: tuple[int, int] = (128, 128)) -> bytes:
    kept = BytesIO()
    Image.new("RGB", size, colour).save(kept, "png")
    return kept.getvalue()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_picture_is_on_it_in_reading_order(count: int) -> None:
    """Whoever looks at it must find each picture over its own caption."""
    sheet = contact_sheet([file(colour) for colour in COLOURS[:count]], ["one line"] * count)
    rows = -(-count // COLUMNS)
    step_y = (sheet.height - GAP_PX) // rows
    for index in range(count):
        x = GAP_PX + index % COLUMNS * (CELL_PX + GAP_PX) + CELL_PX // 2
        y = GAP_PX + index // COLUMNS * step_y + CELL_PX // 2
        assert sheet.getpixel((x, y)) == COLOURS[index]


def test_a_picture_keeps_its_aspect() -> None:
    """A picture that was stretched would hide that its sides had been exchanged."""
    pixels = np.asarray(contact_sheet([file(COLOURS[0], (128, 96))], ["wide"]))
    seen = np.argwhere((pixels == COLOURS[0]).all(axis=-1))
    height, width = seen.max(axis=0) - seen.min(axis=0) + 1
    assert (width, height) == (CELL_PX, CELL_PX * 96 // 128)


def test_the_captions_are_written_below_and_inside() -> None:
    """A caption that runs out of the sheet tells half of what was asked for."""
    long = "a small yellow star on a green background, at the top, beside nothing else at all " * 2
    plain = contact_sheet([file(COLOURS[0])], [""])
    told = np.asarray(contact_sheet([file(COLOURS[0])], [long]).convert("L"))
    ink = np.argwhere(told[GAP_PX + CELL_PX :] < 128)
    assert len(ink) > 500
    assert told.shape[0] > plain.height
    assert ink.max(axis=0)[1] < GAP_PX + CELL_PX + GAP_PX
    assert ink.max(axis=0)[0] < told.shape[0] - GAP_PX - CELL_PX - 1


def test_lines_hold_all_words_and_fit() -> None:
    """Nothing of a prompt is left out."""
    text = "a purple ring on an orange background, at the right, crisp edges"
    broken = lines(text, FONT, 120)
    assert " ".join(broken) == text
    assert len(broken) > 1
    assert all(FONT.getlength(line) <= 120 for line in broken)


def test_a_word_that_fits_nowhere_has_its_own_line() -> None:
    """It must not be lost, nor loop for ever."""
    assert lines("a " + "x" * 90 + " b", FONT, 60) == ["a", "x" * 90, "b"]
