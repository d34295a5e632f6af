"""A world of plain shapes: one shape of one colour on a background of another.

Lengths are fractions of the picture's edges, so that a scene can be drawn at any size; radii are fractions
of the shorter edge. Positions are the cells of `CELLS`, a little jittered, so that no two scenes are alike.
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
"""Where the middle of a shape is: fractions of width and height from the top left corner."""

SIZES: dict[str, float] = {"small": 0.16, "big": 0.24}
"""Radius of a shape as a fraction of the shorter edge."""

MOTIONS = ("left", "right", "up", "down", "growing", "shrinking")

CELL_JITTER = 0.025
RADIUS_JITTER = 0.06
REACH = 1.3
"""How far a shape reaches from its middle, in radii: the tip of a star with its soft edge."""
BORDER = 0.02
"""What stays plain along every edge of the picture."""

TRAVEL = (0.3, 0.7)
"""Where a moving shape starts and ends along its way; the other way round for left and up."""

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture. `x`, `y` and `radius` are what the named position and size became in this one."""

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
        """What the split into training and held-out scenes goes by."""
        return self.shape, self.colour, self.background, self.position


@dataclass(frozen=True, slots=True)
class Clip:
    """One short clip. A shape that moves keeps its radius, one that grows or shrinks its place.

    `across` is where it is on the axis that it does not move along.
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
        """What the split into training and held-out clips goes by."""
        return self.shape, self.colour, self.background, self.motion


def is_held_out(combination: tuple[str, ...]) -> bool:
    """Whether a combination is kept from training: decided by a hash, so equal everywhere and for ever."""
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64


@cache
def combinations(*, held_out: bool, last: tuple[str, ...] = tuple(CELLS)) -> tuple[tuple[str, ...], ...]:
    """Every shape, colour, background and `last` (position or motion) of one side of the split."""
    every = product(SHAPES, COLOURS, COLOURS, last)
    return tuple(one for one in every if one[1] != one[2] and is_held_out(one) == held_out)


def random_scene(draw: np.random.Generator, *, held_out: bool) -> Scene:
    """A scene of one side of the split; equal draws give equal scenes."""
    choices = combinations(held_out=held_out)
    shape, colour, background, position = choices[draw.integers(len(choices))]
    size = str(draw.choice(tuple(SIZES)))
    x, y = (middle + draw.uniform(-CELL_JITTER, CELL_JITTER) for middle in CELLS[position])
    radius = SIZES[size] * (1 + draw.uniform(-RADIUS_JITTER, RADIUS_JITTER))
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


def random_clip(draw: np.random.Generator, *, held_out: bool) -> Clip:
    """A clip of one side of the split; equal draws give equal clips."""
    choices = combinations(held_out=held_out, last=MOTIONS)
    shape, colour, background, motion = choices[draw.integers(len(choices))]
    return Clip(
        shape,
        colour,
        background,
        motion,
        size=str(draw.choice(tuple(SIZES))),
        across=draw.uniform(0.4, 0.6),
        scale=1 + draw.uniform(-RADIUS_JITTER, RADIUS_JITTER),
    )


def render(scene: Scene, width_px: int = 64, height_px: int = 64) -> Pixels:
    """The picture of a scene: (height, width, 3), 8 bits, antialiased."""
    cover = coverage(scene.shape, scene.x, scene.y, scene.radius, width_px, height_px)
    return painted(cover, scene.colour, scene.background)


def render_clip(clip: Clip, frames: int, width_px: int = 64, height_px: int = 64) -> Pixels:
    """The frames of a clip: (frames, height, width, 3), 8 bits, antialiased."""
    return np.stack([_frame(clip, at, width_px, height_px) for at in np.linspace(0, 1, frames)])


def _frame(clip: Clip, at: float, width_px: int, height_px: int) -> Pixels:
    """One frame; `at` runs from 0 at the start to 1 at the end."""
    x, y, radius = place(clip, at)
    return painted(coverage(clip.shape, x, y, radius, width_px, height_px), clip.colour, clip.background)


def place(clip: Clip, at: float) -> tuple[float, float, float]:
    """x, y and radius of the shape; `at` runs from 0 at the start to 1 at the end."""
    radius = SIZES[clip.size] * clip.scale
    if clip.motion in ("growing", "shrinking"):
        small, big = SIZES["small"] * clip.scale, SIZES["big"] * clip.scale * 1.2
        grown = at if clip.motion == "growing" else 1 - at
        return clip.across, clip.across, small + (big - small) * grown
    start, end = TRAVEL if clip.motion in ("right", "down") else TRAVEL[::-1]
    along = start + (end - start) * at
    return (along, clip.across, radius) if clip.motion in ("left", "right") else (clip.across, along, radius)


def painted(cover: NDArray[np.float32], colour: str, background: str) -> Pixels:
    """`cover` (height, width), 0 to 1, in one colour over another."""
    over = np.asarray(COLOURS[colour], np.float32)
    under = np.asarray(COLOURS[background], np.float32)
    mixed = under + cover[..., None] * (over - under)
    return np.round(mixed).astype(np.uint8)
