"""Synthetic scenes and clips: one plain shape of one colour on a background of another.

Coordinates are fractions of width and height, so that a scene can be rendered at any size; radii are
fractions of the shorter edge. Positions are the cells of `CELLS` with a small random offset.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from training.shapes import SHAPES, coverage

Rgb = tuple[int, int, int]
Pixels = NDArray[np.uint8]

COLOURS: dict[str, Rgb] = {
    "red": (215, 35, 40),
    "orange": (248, 145, 30),
    "yellow": (250, 228, 60),
    "green": (40, 150, 65),
    "cyan": (70, 215, 225),
    "blue": (35, 75, 210),
    "purple": (125, 50, 170),
    "pink": (248, 150, 200),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}

CELLS: dict[str, tuple[float, float]] = {
    "left": (0.3, 0.5),
    "right": (0.7, 0.5),
    "top": (0.5, 0.3),
    "bottom": (0.5, 0.7),
    "centre": (0.5, 0.5),
}
"""Centre of the shape at each position: fractions of width and height from the top left corner."""

SIZES: dict[str, float] = {"small": 0.16, "big": 0.24}
"""Radius of a shape as a fraction of the shorter edge."""

MOTIONS = ("left", "right", "up", "down", "growing", "shrinking")

CELL_JITTER = 0.025
RADIUS_JITTER = 0.06
REACH = 1.3
"""Extent of a shape from its centre, in radii: the tip of a star with its antialiased edge."""
BORDER = 0.02
"""Margin without any part of the shape along every edge, as a fraction of the edge."""

TRAVEL = (0.3, 0.7)
"""Start and end of a moving shape on the axis of its motion; reversed for left and up."""

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of an image. `x`, `y` and `radius` are the exact values of the named position and size."""

    shape: str
    colour: str
    background: str
    position: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def combination(self) -> tuple[str, str, str, str]:
        """The key of the split into training and held-out scenes."""
        return self.shape, self.colour, self.background, self.position


@dataclass(frozen=True, slots=True)
class Clip:
    """The contents of a clip. A moving shape keeps its radius, a growing or shrinking one its position.

    `across` is the coordinate on the axis without motion, `scale` a factor on the radius.
    """

    shape: str
    colour: str
    background: str
    motion: str
    size: str
    across: float
    scale: float

    @property
    def combination(self) -> tuple[str, str, str, str]:
        """The key of the split into training and held-out clips."""
        return self.shape, self.colour, self.background, self.motion


def is_held_out(combination: tuple[str, ...]) -> bool:
    """Whether a combination is excluded from training. A hash decides, so the split never changes."""
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64


@cache
def combinations(*, held_out: bool, last: tuple[str, ...] = tuple(CELLS)) -> tuple[tuple[str, ...], ...]:
    """All combinations of shape, colour, background and `last` (positions or motions) of one side of the
    split."""
    candidates = product(SHAPES, COLOURS, COLOURS, last)
    return tuple(
        combination
        for combination in candidates
        if combination[1] != combination[2] and is_held_out(combination) == held_out
    )


def random_scene(rng: np.random.Generator, *, held_out: bool) -> Scene:
    """A scene of one side of the split; equal generators give equal scenes."""
    choices = combinations(held_out=held_out)
    shape, colour, background, position = choices[rng.integers(len(choices))]
    size = str(rng.choice(tuple(SIZES)))
    x, y = (middle + rng.uniform(-CELL_JITTER, CELL_JITTER) for middle in CELLS[position])
    radius = SIZES[size] * (1 + rng.uniform(-RADIUS_JITTER, RADIUS_JITTER))
    edge = REACH * radius + BORDER
    return Scene(
        shape,
        colour,
        background,
        position,
        size,
        x=min(max(x, edge), 1 - edge),
        y=min(max(y, edge), 1 - edge),
        radius=radius,
    )


def random_clip(rng: np.random.Generator, *, held_out: bool) -> Clip:
    """A clip of one side of the split; equal generators give equal clips."""
    choices = combinations(held_out=held_out, last=MOTIONS)
    shape, colour, background, motion = choices[rng.integers(len(choices))]
    return Clip(
        shape,
        colour,
        background,
        motion,
        size=str(rng.choice(tuple(SIZES))),
        across=rng.uniform(0.4, 0.6),
        scale=1 + rng.uniform(-RADIUS_JITTER, RADIUS_JITTER),
    )


def render(scene: Scene, width_px: int = 64, height_px: int = 64) -> Pixels:
    """The image of a scene: (height, width, 3), 8 bits, antialiased."""
    cover = coverage(scene.shape, scene.x, scene.y, scene.radius, width_px, height_px)
    return composite(cover, scene.colour, scene.background)


def render_clip(clip: Clip, frames: int, width_px: int = 64, height_px: int = 64) -> Pixels:
    """The frames of a clip: (frames, height, width, 3), 8 bits, antialiased."""
    return np.stack([_frame(clip, time, width_px, height_px) for time in np.linspace(0, 1, frames)])


def _frame(clip: Clip, time: float, width_px: int, height_px: int) -> Pixels:
    """One frame; `time` runs from 0 to 1."""
    x, y, radius = geometry(clip, time)
    return composite(coverage(clip.shape, x, y, radius, width_px, height_px), clip.colour, clip.background)


def geometry(clip: Clip, time: float) -> tuple[float, float, float]:
    """x, y and radius of the shape at a time from 0 to 1."""
    radius = SIZES[clip.size] * clip.scale
    if clip.motion in ("growing", "shrinking"):
        small, big = SIZES["small"] * clip.scale, SIZES["big"] * clip.scale * 1.2
        progress = time if clip.motion == "growing" else 1 - time
        return clip.across, clip.across, small + (big - small) * progress
    start, end = TRAVEL if clip.motion in ("right", "down") else TRAVEL[::-1]
    along = start + (end - start) * time
    return (along, clip.across, radius) if clip.motion in ("left", "right") else (clip.across, along, radius)


def composite(cover: NDArray[np.float32], colour: str, background: str) -> Pixels:
    """The image of a foreground with the mask `cover`, (height, width) from 0 to 1, over a background."""
    foreground = np.asarray(COLOURS[colour], np.float32)
    behind = np.asarray(COLOURS[background], np.float32)
    mixed = behind + cover[..., None] * (foreground - behind)
    return np.round(mixed).astype(np.uint8)
