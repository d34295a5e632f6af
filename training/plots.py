"""Loss curves and grids of sample images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PLOT_PX = (640, 360)
MARGIN_PX = 44
CAPTION_PX = 11


def loss_plot(losses: Sequence[tuple[int, float]], *, title: str) -> Image.Image:
    """A plot of the loss over the steps on a logarithmic scale, raw and smoothed."""
    image = Image.new("RGB", PLOT_PX, "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN_PX, 8), f"{title}: loss over steps", fill="black")
    points = [(step, math.log10(loss)) for step, loss in losses if loss > 0]
    if len(points) < 2:
        return image
    last = points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)

    def position(step: float, y: float) -> tuple[float, float]:
        width, height = PLOT_PX[0] - 2 * MARGIN_PX, PLOT_PX[1] - 2 * MARGIN_PX
        return MARGIN_PX + width * step / last, MARGIN_PX + height * (high - y) / max(high - low, 1e-9)

    for k in range(5):
        y = low + (high - low) * k / 4
        pen.line([position(0, y), position(last, y)], fill=(225, 225, 225))
        pen.text((4, position(0, y)[1] - 6), f"{10**y:.2g}", fill="black")
    pen.text((PLOT_PX[0] - MARGIN_PX - 30, PLOT_PX[1] - MARGIN_PX + 6), str(last), fill="black")
    pen.line([position(*point) for point in points], fill=(170, 195, 235))
    pen.line([position(*point) for point in _smoothed(points)], fill=(25, 70, 170), width=2)
    return image


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The exponential moving average of the losses over a fortieth of the points."""
    keep = 1 - 1 / max(len(points) / 40, 1)
    mean = points[0][1]
    smooth = []
    for step, y in points:
        mean = keep * mean + (1 - keep) * y
        smooth.append((step, mean))
    return smooth


def grid(
    images: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 8, scale: int = 2
) -> Image.Image:
    """A contact sheet of images of one size, each enlarged `scale` times above its caption."""
    width, height = images[0].width * scale, images[0].height * scale
    lines_px = 3 * (CAPTION_PX + 1) if any(captions) else 0
    cell = (width + 6, height + lines_px + 6)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(CAPTION_PX - 1)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = (index % columns) * cell[0], (index // columns) * cell[1]
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left + 3, top + 3))
        for line, words in enumerate(_lines(caption, width // 5)):
            pen.text((left + 4, top + height + 4 + line * (CAPTION_PX + 1)), words, fill="black", font=font)
    return sheet


def _lines(caption: str, length: int) -> list[str]:
    """The caption in at most three lines of about `length` characters."""
    lines = [""]
    for word in caption.split():
        if len(lines[-1]) + len(word) > length and len(lines) < 3:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
