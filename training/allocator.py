"""Settings of the C library's memory allocator for training on a CPU."""

from __future__ import annotations

import ctypes

# https://man7.org/linux/man-pages/man3/mallopt.3.html
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
MIB = 1 << 20


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks instead of returning them to the kernel.

    Every step allocates blocks of the same sizes again, and mapping them anew costs kernel time; the saving
    has not been measured. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(MMAP_THRESHOLD, 32 * MIB)
    mallopt(TRIM_THRESHOLD, 2000 * MIB)
    mallopt(TOP_PAD, 256 * MIB)
