"""The values that an installation supplies where a payload leaves them out."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ourvidz.jobs.ranges import SEED

MAX_IMAGES = 6


def draw_seed() -> int:
    """Draw an unpredictable seed. It and the next five, for the images of a batch, are in the allowed
    range."""
    return secrets.randbelow(int(SEED.high) + 1 - MAX_IMAGES)


@dataclass(frozen=True)
class Defaults:
    """Defaults and limits of an installation for parsing payloads.

    Sizes are (width, height) in pixels. `wan_frame_pixels` limits frames x width x height of a clip; None is
    no limit. `callback_hosts` (`host` or `host:port`) are those a `callback_url` may have. `negative_prompt`
    is used for SDXL jobs without one, `wan_negative_prompt` for Wan jobs. `loras` maps the LoRA names that
    SDXL jobs may use to their default weights.
    """

    sdxl_size: tuple[int, int] = (1024, 1024)
    wan_size: tuple[int, int] = (480, 832)
    wan_frame_pixels: int | None = None
    callback_hosts: frozenset[str] = frozenset()
    negative_prompt: str | None = None
    wan_negative_prompt: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    draw_seed: Callable[[], int] = draw_seed
