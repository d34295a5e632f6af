"""The size at which an image is rendered, and how a reference is fitted to it."""

from __future__ import annotations

from typing import Final

from PIL import ImageOps
from PIL.Image import Image, Resampling

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import ImageJob, VideoJob

MIN_EDGE_PX = 16
"""An edge of fewer than two latents cannot be downsampled inside the UNet."""

RESIZE_POLICY: Final = "center_crop"
"""The name of `center_crop` in an asset's metadata."""


def check_multiple(job: ImageJob | VideoJob, multiple: int) -> None:
    """Raise `InvalidParameters` unless width and height (px) are multiples of `multiple`."""
    for field, edge_px in (("width", job.width), ("height", job.height)):
        if edge_px % multiple:
            raise InvalidParameters(
                f"{job.width}x{job.height} px is not a multiple of {multiple}.",
                field=field,
                rule=f"multiples of {multiple}",
                value=edge_px,
            )


def cap_size(width_px: int, height_px: int, *, cap: int | None, multiple: int) -> tuple[int, int]:
    """Width and height (px), scaled down so that the longest edge has at most `cap` px; None is no cap.

    Scaled edges are multiples of `multiple` px and at least 16 px; the aspect ratio is kept as far as that
    allows.
    """
    longest = max(width_px, height_px)
    if cap is None or longest <= cap:
        return width_px, height_px
    return _scaled(width_px, cap, longest, multiple), _scaled(height_px, cap, longest, multiple)


def center_crop(image: Image, width_px: int, height_px: int) -> Image:
    """`image` as RGB, cropped around its centre to the aspect ratio and resized to `width_px` x `height_px`
    with a Lanczos filter. An image of that size keeps its pixels."""
    return ImageOps.fit(image.convert("RGB"), (width_px, height_px), Resampling.LANCZOS)


def _scaled(edge_px: int, cap: int, longest: int, multiple: int) -> int:
    """`edge_px · cap / longest` rounded to the nearest multiple."""
    return max(MIN_EDGE_PX, round(edge_px * cap / longest / multiple) * multiple)
