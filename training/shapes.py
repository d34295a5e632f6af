"""Signed distance functions of the shapes, negative inside, in units of their radius.

Distances are exact near edges, which is sufficient for antialiasing. The y axis points down. The centre of
mass of every shape is within 2 % of its radius of the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]
"""One single-precision number per pixel: (height, width)."""


def _circle(x: Field, y: Field) -> Field:
    """Signed distance to a circle."""
    return np.hypot(x, y) - 1


def _ring(x: Field, y: Field) -> Field:
    """Signed distance to a ring."""
    return np.abs(np.hypot(x, y) - 0.78) - 0.27


def _square(x: Field, y: Field) -> Field:
    """Signed distance to an upright square."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.88


def _diamond(x: Field, y: Field) -> Field:
    """Signed distance to a square that stands on a corner."""
    distance: Field = (np.abs(x) + np.abs(y) - 1.15) / np.sqrt(2).astype(np.float32)
    return distance


def _triangle(x: Field, y: Field) -> Field:
    """Signed distance to a triangle with corners at (0, -1.2) and (±1.05, 0.6)."""
    apex, base, half = -1.2, 0.6, 1.05
    side = (np.abs(x) * (base - apex) - (y - apex) * half) / np.hypot(base - apex, half)
    distance: Field = np.maximum(side, y - base)
    return distance


def _cross(x: Field, y: Field) -> Field:
    """Signed distance to a cross of two bars."""
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1.05, y - 0.36), np.maximum(x - 0.36, y - 1.05))


def _star(x: Field, y: Field) -> Field:
    """Signed distance to a star with five points, one of them up.

    The plane is folded into a wedge of 36° between point and notch.
    """
    outer, inner = 1.22, 0.5
    wedge = np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + wedge) % (2 * wedge) - wedge)
    distance = np.hypot(x, y)
    along, aside = distance * np.cos(angle), distance * np.sin(angle)
    notch_along, notch_aside = inner * np.cos(wedge), inner * np.sin(wedge)
    run, rise = outer - notch_along, notch_aside
    edge: Field = ((along - outer) * rise + aside * run) / np.hypot(run, rise)
    return edge


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}


def coverage(shape: str, x: float, y: float, radius: float, width_px: int, height_px: int) -> Field:
    """The covered fraction of every pixel, 0 to 1: (height, width).

    `x` and `y` are fractions of width and height, `radius` is a fraction of the shorter edge.
    """
    radius_px = radius * min(width_px, height_px)
    columns = (np.arange(width_px, dtype=np.float32) + 0.5 - x * width_px) / radius_px
    rows = (np.arange(height_px, dtype=np.float32) + 0.5 - y * height_px) / radius_px
    distance = SHAPES[shape](*np.meshgrid(columns, rows))
    cover: Field = np.clip(0.5 - distance * radius_px, 0, 1).astype(np.float32)
    return cover
