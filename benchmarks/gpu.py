"""A clock and a gauge for what runs on a GPU; without one, the clock alone."""

from __future__ import annotations

import time

import torch

GIB = 1 << 30


def now() -> float:
    """The clock, once the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak() -> None:
    """Measure the peak of the GPU's memory from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """The most memory that was in use since then; None without a GPU."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def told(peak: float | None) -> str:
    """The peak in words."""
    return "no GPU" if peak is None else f"{peak:.1f} GiB"
