"""Recognition of scenes and clips by image arithmetic, without a model.

An image is assumed to show one shape on a plain background. The result is always the nearest colour, template
and position, so a wrong image counts as a wrong answer, never as a missing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.scenes import CELLS, COLOURS, MOTIONS, SIZES, TRAVEL, Pixels
from training.shapes import SHAPES, coverage

Numbers = NDArray[np.float64]

BORDER_PX = 2
INSIDE = 0.8
"""Least coverage of the pixels that decide the foreground colour; pixels at the edge are mixtures."""

RADIUS_FACTORS = (0.88, 0.94, 1.0, 1.06, 1.12)
SHIFTS_PX = (-1.0, 0.0, 1.0)
SHIFTED_SHAPES = 3
"""Number of shapes that are compared at all shifts."""
STILL = 0.25
"""Least fraction of a full motion; a clip with less counts as still."""


@dataclass(frozen=True, slots=True)
class RecognizedScene:
    """The attributes of an image.

    `x` and `y` are the centre of the shape as fractions of width and height, `radius` is a fraction of the
    shorter edge, `overlap` the overlap with the best template, 0 to 1.
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
class RecognizedClip:
    """The attributes of a clip: the most frequent colours of its frames, and one of `MOTIONS` or "still"."""

    background: str
    colour: str
    motion: str


def recognize_scene(image: Pixels) -> RecognizedScene:
    """The attributes of an 8-bit image of (height, width, 3)."""
    background, colour, cover = segment(image)
    x, y = centroid(cover)
    shape, overlap, radius = best_template(cover, x, y)
    return RecognizedScene(
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


def recognize_clip(frames: Sequence[Pixels]) -> RecognizedClip:
    """The attributes of a clip of at least two 8-bit frames of (height, width, 3)."""
    parts = [segment(frame) for frame in frames]
    centres = np.array([centroid(cover) for _, _, cover in parts])
    areas = np.array([max(float(cover.mean()), 1e-4) for _, _, cover in parts])
    return RecognizedClip(
        background=_most_frequent([background for background, _, _ in parts]),
        colour=_most_frequent([colour for _, colour, _ in parts]),
        motion=recognize_motion(centres, areas),
    )


def segment(image: Pixels) -> tuple[str, str, Numbers]:
    """The names of the background and foreground colours and the foreground mask: (height, width), 0 to 1.

    The foreground colour is that of the pixels that differ most from the background. The mask is the position
    of a pixel on the line between both colours.
    """
    border = _border(image)
    names = nearest_colours(border)
    background = _most_frequent(names)
    plain = border[[name == background for name in names]]
    behind = np.median(plain, axis=0)
    difference = image.astype(np.float64) - behind
    distance = np.sqrt((difference**2).sum(axis=-1))
    foreground = np.median(difference[distance >= 0.9 * np.percentile(distance, 98.5)], axis=0)
    cover = np.clip(difference @ foreground / max(float(foreground @ foreground), 1.0), 0, 1)
    inside = image[cover >= INSIDE]
    colour = _most_frequent(nearest_colours(inside)) if len(inside) else background
    return background, colour, cover


def nearest_colours(pixels: NDArray[np.generic]) -> list[str]:
    """The name of the perceptually nearest colour of each of (n, 3) pixels."""
    names = list(COLOURS)
    palette = oklab(np.array([COLOURS[name] for name in names]))
    distances = ((oklab(pixels)[:, None, :] - palette[None]) ** 2).sum(axis=-1)
    return [names[k] for k in distances.argmin(axis=1)]


def oklab(pixels: NDArray[np.generic]) -> Numbers:
    """8-bit sRGB pixels, (n, 3), in Oklab, where distances are about perceptual.

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


def _border(image: Pixels) -> NDArray[np.uint8]:
    """The outermost pixels: (n, 3)."""
    outside = np.ones(image.shape[:2], bool)
    outside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    return image[outside]


def _most_frequent(names: Sequence[str]) -> str:
    values, counts = np.unique(list(names), return_counts=True)
    return str(values[counts.argmax()])


def centroid(cover: Numbers) -> tuple[float, float]:
    """x and y of the centre of mass of a mask, as fractions of width and height; the centre of the image if
    the mask is empty."""
    solid = np.where(cover > 0.3, cover, 0)
    total = solid.sum()
    if total == 0:
        return 0.5, 0.5
    height, width = cover.shape
    x = (solid.sum(axis=0) @ (np.arange(width) + 0.5)) / total / width
    y = (solid.sum(axis=1) @ (np.arange(height) + 0.5)) / total / height
    return float(x), float(y)


def nearest_cell(x: float, y: float) -> str:
    """The name of the nearest position."""
    return min(CELLS, key=lambda name: (CELLS[name][0] - x) ** 2 + (CELLS[name][1] - y) ** 2)


def best_template(cover: Numbers, x: float, y: float) -> tuple[str, float, float]:
    """The shape with the largest overlap (intersection over union of soft masks), the overlap and the radius.

    Every shape is compared at several radii around that of equal area; those with the largest overlaps also
    at small shifts from (x, y).
    """
    area = float(np.where(cover > 0.3, cover, 0).sum())
    radii = {shape: max(np.sqrt(area / _AREAS[shape]) / min(cover.shape), 0.02) for shape in SHAPES}
    centred = {shape: _best_fit(cover, shape, x, y, radii[shape], shifts_px=(0.0,)) for shape in SHAPES}
    candidates = sorted(SHAPES, key=lambda shape: centred[shape][0], reverse=True)[:SHIFTED_SHAPES]
    fits = {shape: _best_fit(cover, shape, x, y, radii[shape], shifts_px=SHIFTS_PX) for shape in candidates}
    best = max(candidates, key=lambda shape: fits[shape][0])
    return best, *fits[best]


def _best_fit(
    cover: Numbers, shape: str, x: float, y: float, equal_area: float, *, shifts_px: Sequence[float]
) -> tuple[float, float]:
    """The largest intersection over union of a shape with the mask, over all shifts and radii, and the
    radius that has it."""
    height, width = cover.shape
    fits = (
        (soft_overlap(cover, coverage(shape, x + dx / width, y + dy / height, radius, width, height)), radius)
        for radius in (equal_area * factor for factor in RADIUS_FACTORS)
        for dx in shifts_px
        for dy in shifts_px
    )
    return max(fits, key=lambda fit: fit[0])


def soft_overlap(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Intersection over union of two masks with values from 0 to 1."""
    return float(np.minimum(one, other).sum() / max(np.maximum(one, other).sum(), 1e-9))


_AREAS = {shape: float(coverage(shape, 0.5, 0.5, 0.25, 256, 256).sum()) / 64**2 for shape in SHAPES}
"""Area of every shape in units of its squared radius."""


def recognize_motion(centres: Numbers, areas: Numbers) -> str:
    """The motion of a shape from its centres (n, 2) and areas (n) in the frames of a clip.

    Lines are fitted through both. The motion is the largest change relative to a full motion of that kind, or
    "still" if no change reaches `STILL`.
    """
    travel = TRAVEL[1] - TRAVEL[0]
    full_growth = np.log(SIZES["big"] * 1.2 / SIZES["small"])
    right, down = (_change(centres[:, axis]) / travel for axis in (0, 1))
    growth = _change(np.log(areas) / 2) / full_growth
    shares = {
        "right": right,
        "left": -right,
        "down": down,
        "up": -down,
        "growing": growth,
        "shrinking": -growth,
    }
    best = max(MOTIONS, key=lambda name: shares[name])
    return best if shares[best] >= STILL else "still"


def _change(values: Numbers) -> float:
    """The rise of a fitted line from the first to the last value."""
    slope = np.polyfit(np.linspace(0, 1, len(values)), values, 1)[0]
    return float(slope)
