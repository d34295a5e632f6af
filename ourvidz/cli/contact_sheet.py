"""Several pictures as one, each over its caption."""

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


def contact_sheet(pictures: Sequence[bytes], captions: Sequence[str]) -> Image.Image:
    """Encoded pictures row by row, each as large as its square cell allows, its caption in lines below."""
    font = ImageFont.load_default(FONT_PX)
    texts = [lines(caption, font, CELL_PX) for caption in captions]
    columns = min(COLUMNS, len(pictures))
    step_x, step_y = CELL_PX + GAP_PX, CELL_PX + GAP_PX + LINE_PX * max(map(len, texts))
    size = (GAP_PX + columns * step_x, GAP_PX + math.ceil(len(pictures) / columns) * step_y)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = GAP_PX + index % columns * step_x, GAP_PX + index // columns * step_y
        shown = ImageOps.contain(Image.open(BytesIO(picture)).convert("RGB"), (CELL_PX, CELL_PX))
        sheet.paste(shown, (left + (CELL_PX - shown.width) // 2, top + CELL_PX - shown.height))
        for number, line in enumerate(text):
            pen.text((left, top + CELL_PX + 2 + number * LINE_PX), line, fill="black", font=font)
    return sheet


def lines(text: str, font: Font, width_px: int) -> list[str]:
    """The words of a text in lines of at most `width_px`; a word that is longer has a line to itself."""
    made: list[str] = []
    for word in text.split():
        if made and font.getlength(f"{made[-1]} {word}") <= width_px:
            made[-1] = f"{made[-1]} {word}"
        else:
            made.append(word)
    return made
