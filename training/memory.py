"""Memory for training on a CPU."""

from __future__ import annotations

import ctypes

# https://man7.org/linux/man-pages/man3/mallopt.3.html
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
MIB = 1 << 20


def keep_freed_memory() -> None:
    """Let the C library keep what tensors give back instead of returning it to the kernel, where it can.

    Every step allocates the same large blocks again, and mapping them anew costs kernel time; how much of it
    these thresholds save has not been measured. Elsewhere than on Linux with glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(MMAP_THRESHOLD, 32 * MIB)
    mallopt(TRIM_THRESHOLD, 2000 * MIB)
    mallopt(TOP_PAD, 256 * MIB)
