"""How large Wan renders."""

from __future__ import annotations

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.sizes import capped

MULTIPLE_PX = 16
"""Latents are eight times smaller, and the transformer reads them in patches of two by two."""


def need_multiples(job: VideoJob) -> None:
    """`InvalidParameters` for a side that cannot be rendered."""
    for side in ("width", "height"):
        if getattr(job, side) % MULTIPLE_PX:
            raise InvalidParameters(
                f"{job.width}x{job.height} px is not a multiple of {MULTIPLE_PX}.",
                field=side,
                rule=f"multiples of {MULTIPLE_PX}",
                value=getattr(job, side),
            )


def rendered(job: VideoJob, cap: int | None) -> tuple[int, int]:
    """Width and height (pixels) as they are rendered: the longest edge at most `cap`; None means any."""
    return capped(job.width, job.height, cap=cap, multiple=MULTIPLE_PX)
