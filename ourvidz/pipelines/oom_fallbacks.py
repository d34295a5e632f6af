"""What is given up when memory runs out, one rung after the other. Never the size of a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PAIR_PX = 512 * 512
"""Two pictures of so many pixels together leave processors idle when they are decoded one by one."""


@dataclass(frozen=True, slots=True)
class OomFallback:
    """How a job is tried: `at_once` pictures in one batch, the VAE in `tiled` pieces or whole.

    `name` is what the callback is told.
    """

    name: Literal["whole", "freed", "tiled", "parts"]
    at_once: int
    tiled: bool

    def decoded(self, pixels: int) -> int:
        """How many pictures of so many pixels the VAE decodes at once.

        Never more than two: the first ones are stored meanwhile. Large ones go one by one, they take more
        memory in the VAE than in the UNet.
        """
        return 2 if self.name == "whole" and 2 * pixels <= PAIR_PX else 1


def rungs(pictures: int) -> Iterator[OomFallback]:
    """From everything at once, over the same with freed caches and then a tiled VAE, to batches of half the
    size, down to one picture."""
    yield OomFallback("whole", pictures, tiled=False)
    yield OomFallback("freed", pictures, tiled=False)
    yield OomFallback("tiled", pictures, tiled=True)
    while pictures > 1:
        pictures = (pictures + 1) // 2
        yield OomFallback("parts", pictures, tiled=True)
