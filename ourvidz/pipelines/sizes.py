"""How large a picture is rendered."""

from __future__ import annotations

MULTIPLE_PX = 8
SMALLEST_PX = 16
"""Below two latent pixels an edge cannot be halved inside the UNet."""


def capped(width_px: int, height_px: int, *, cap: int | None, multiple: int = MULTIPLE_PX) -> tuple[int, int]:
    """The size to render: as asked, or scaled down until the longest edge is `cap` pixels.

    The aspect is kept as far as edges of multiples of `multiple` px, at least 16, allow.
    """
    longest = max(width_px, height_px)
    if cap is None or longest <= cap:
        return width_px, height_px
    return _scaled(width_px, cap, longest, multiple), _scaled(height_px, cap, longest, multiple)


def _scaled(edge_px: int, cap: int, longest: int, multiple: int) -> int:
    """`edge_px · cap / longest` to the nearest multiple."""
    return max(SMALLEST_PX, round(edge_px * cap / longest / multiple) * multiple)
