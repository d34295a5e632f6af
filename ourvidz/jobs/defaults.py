"""What the installation decides where a caller leaves a choice open."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ourvidz.jobs.ranges import SEED

MOST_IMAGES = 6


def draw_seed() -> int:
    """A seed nobody can predict, in the range callers may send, for every picture of a batch."""
    return secrets.randbelow(int(SEED.high) + 1 - MOST_IMAGES)


@dataclass(frozen=True)
class Defaults:
    """Sizes are (width, height) in pixels; `callback_hosts` are `host` or `host:port`.

    `wan_frame_pixels` is how many pixels all frames of a clip may have together; None means any.
    """

    sdxl_size: tuple[int, int] = (1024, 1024)
    wan_size: tuple[int, int] = (480, 832)
    wan_frame_pixels: int | None = None
    callback_hosts: frozenset[str] = frozenset()
    negative_prompt: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    """The names that an SDXL job may use, each with its usual weight."""
    draw_seed: Callable[[], int] = draw_seed
