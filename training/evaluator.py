"""What a picture or a clip shows, by plain image arithmetic: no model judges another.

A picture is taken for one shape on a plain background. Whatever it shows instead is still named after the
nearest colour, template and cell, so a wrong picture is a wrong answer, never a missing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.shapes import SHAPES, coverage
from training.world import CELLS, COLOURS, MOTIONS, SIZES, TRAVEL, Pixels

Numbers = NDArray[np.float64]

BORDER_PX = 2
INSIDE = 0.8
"""Pixels at least this covered tell the foreground's colour: the edge ones are mixtures."""

TRIED_RADII = (0.88, 0.94, 1.0, 1.06, 1.12)
TRIED_SHIFTS_PX = (-1.0, 0.0, 1.0)
STILL = 0.25
"""Below this share of a whole motion nothing moved."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one picture shows.

    `x`, `y` are the middle of the shape as fractions of the edges, `radius` as one of the shorter edge;
    `overlap` is the best template's, 0 to 1.
    """

    background: str
    colour: str
    shape: str
    position: str
    size: str
    overlap: float
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class SeenClip:
    """What one clip shows: the colours most of its frames show, and one of `MOTIONS` or "still"."""

    background: str
    colour: str
    motion: str


def look(picture: Pixels) -> Seen:
    """What a picture of (height, width, 3) in 8 bits shows."""
    background, colour, cover = segmented(picture)
    x, y = centroid(cover)
    shape, overlap, radius = best_template(cover, x, y)
    return Seen(
        background=background,
        colour=colour,
        shape=shape,
        position=nearest_cell(x, y),
        size=min(SIZES, key=lambda name: abs(SIZES[name] - radius)),
        overlap=overlap,
        x=x,
        y=y,
        radius=radius,
    )


def watch(frames: Sequence[Pixels]) -> SeenClip:
    """What a clip shows; at least two frames, each (height, width, 3) in 8 bits."""
    parts = [segmented(frame) for frame in frames]
    middles = np.array([centroid(cover) for _, _, cover in parts])
    areas = np.array([max(float(cover.mean()), 1e-4) for _, _, cover in parts])
    return SeenClip(
        background=_most_frequent([background for background, _, _ in parts]),
        colour=_most_frequent([colour for _, colour, _ in parts]),
        motion=motion(middles, areas),
    )


# -- colours
def segmented(picture: Pixels) -> tuple[str, str, Numbers]:
    """Background and foreground colour, and how much of every pixel is foreground: (height, width), 0 to 1.

    The foreground is where the picture differs most from the background; a pixel's share of it is how far
    along the line between the two colours it lies.
    """
    border = _border(picture)
    names = nearest_colours(border)
    background = _most_frequent(names)
    own = border[[name == background for name in names]]
    under = np.median(own, axis=0)
    off = picture.astype(np.float64) - under
    far = np.sqrt((off**2).sum(axis=-1))
    over = np.median(off[far >= 0.9 * np.percentile(far, 98.5)], axis=0)
    cover = np.clip(off @ over / max(float(over @ over), 1.0), 0, 1)
    inside = picture[cover >= INSIDE]
    colour = _most_frequent(nearest_colours(inside)) if len(inside) else background
    return background, colour, cover


def nearest_colours(pixels: NDArray[np.generic]) -> list[str]:
    """The named colour that looks nearest to each of (n, 3) pixels."""
    named = list(COLOURS)
    palette = oklab(np.array([COLOURS[name] for name in named]))
    apart = ((oklab(pixels)[:, None, :] - palette[None]) ** 2).sum(axis=-1)
    return [named[k] for k in apart.argmin(axis=1)]


def oklab(pixels: NDArray[np.generic]) -> Numbers:
    """8-bit sRGB, (n, 3), in Oklab, where distances are about as large as they look.

    https://bottosson.github.io/posts/oklab/
    """
    encoded = pixels.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _TO_CONES.T)
    lab: Numbers = cones @ _TO_LAB.T
    return lab


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _border(picture: Pixels) -> NDArray[np.uint8]:
    """The outermost pixels: (n, 3)."""
    outside = np.ones(picture.shape[:2], bool)
    outside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    return picture[outside]


def _most_frequent(names: Sequence[str]) -> str:
    found, counts = np.unique(list(names), return_counts=True)
    return str(found[counts.argmax()])


# -- where and what
def centroid(cover: Numbers) -> tuple[float, float]:
    """x and y of the middle of what is covered, as fractions of the edges; the middle of the picture where
    nothing is."""
    solid = np.where(cover > 0.3, cover, 0)
    total = solid.sum()
    if total == 0:
        return 0.5, 0.5
    height, width = cover.shape
    x = (solid.sum(axis=0) @ (np.arange(width) + 0.5)) / total / width
    y = (solid.sum(axis=1) @ (np.arange(height) + 0.5)) / total / height
    return float(x), float(y)


def nearest_cell(x: float, y: float) -> str:
    """The named position whose middle is nearest."""
    return min(CELLS, key=lambda name: (CELLS[name][0] - x) ** 2 + (CELLS[name][1] - y) ** 2)


def best_template(cover: Numbers, x: float, y: float) -> tuple[str, float, float]:
    """The shape that overlaps best, its overlap and its radius: intersection over union of soft masks.

    Every shape is tried around the middle of what is covered, at about the size that covers as much.
    """
    height, width = cover.shape
    area = float(np.where(cover > 0.3, cover, 0).sum())
    best = ("", -1.0, 0.0)
    for shape in SHAPES:
        fitting = max(np.sqrt(area / _AREAS[shape]) / min(height, width), 0.02)
        for scale in TRIED_RADII:
            radius = fitting * scale
            overlap = max(
                soft_overlap(cover, coverage(shape, x + dx / width, y + dy / height, radius, width, height))
                for dx in TRIED_SHIFTS_PX
                for dy in TRIED_SHIFTS_PX
            )
            if overlap > best[1]:
                best = (shape, overlap, radius)
    return best


def soft_overlap(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Intersection over union of two masks of 0 to 1."""
    return float(np.minimum(one, other).sum() / max(np.maximum(one, other).sum(), 1e-9))


_AREAS = {shape: float(coverage(shape, 0.5, 0.5, 0.25, 256, 256).sum()) / 64**2 for shape in SHAPES}
"""Of every shape, in squares of its radius."""


# -- motion
def motion(middles: Numbers, areas: Numbers) -> str:
    """The direction of a clip from the middles (n, 2) and areas (n) of its frames.

    Straight lines are fitted through both; what changed most, as a share of what the world's clips change,
    is the motion.
    """
    travel = TRAVEL[1] - TRAVEL[0]
    growth = np.log(SIZES["big"] * 1.2 / SIZES["small"])
    right, down = (_change(middles[:, axis]) / travel for axis in (0, 1))
    grown = _change(np.log(areas) / 2) / growth
    shares = {
        "right": right,
        "left": -right,
        "down": down,
        "up": -down,
        "growing": grown,
        "shrinking": -grown,
    }
    best = max(MOTIONS, key=lambda name: shares[name])
    return best if shares[best] >= STILL else "still"


def _change(values: Numbers) -> float:
    """How much a fitted line rises from the first to the last value."""
    slope = np.polyfit(np.linspace(0, 1, len(values)), values, 1)[0]
    return float(slope)
