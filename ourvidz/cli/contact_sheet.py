"""A contact sheet: several images in a grid, each above its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont, ImageOps

COLUMNS = 3
CELL_PX = 256
GAP_PX = 12
FONT_PX = 15
LINE_PX = 20

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(images: Sequence[bytes], captions: Sequence[str]) -> Image.Image:
    """Draw encoded images row by row, scaled to fit square cells, with the wrapped captions below them.

    `captions` has one text for each image. Returns an RGB image.
    """
    font = ImageFont.load_default(FONT_PX)
    wrapped = [wrap_text(caption, font, CELL_PX) for caption in captions]
    columns = min(COLUMNS, len(images))
    step_x, step_y = CELL_PX + GAP_PX, CELL_PX + GAP_PX + LINE_PX * max(map(len, wrapped))
    size = (GAP_PX + columns * step_x, GAP_PX + math.ceil(len(images) / columns) * step_y)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (encoded, lines) in enumerate(zip(images, wrapped, strict=True)):
        left, top = GAP_PX + index % columns * step_x, GAP_PX + index // columns * step_y
        image = ImageOps.contain(Image.open(BytesIO(encoded)).convert("RGB"), (CELL_PX, CELL_PX))
        sheet.paste(image, (left + (CELL_PX - image.width) // 2, top + CELL_PX - image.height))
        for number, line in enumerate(lines):
            draw.text((left, top + CELL_PX + 2 + number * LINE_PX), line, fill="black", font=font)
    return sheet


def wrap_text(text: str, font: Font, width_px: int) -> list[str]:
    """Wrap a text into lines of at most `width_px`. A longer word gets a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines
