"""Time and peak memory of work on a GPU. Without a GPU only the time."""

from __future__ import annotations

import time

import torch

GIB = 1 << 30


def now() -> float:
    """The time in seconds, after all work that is queued on the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak() -> None:
    """Start a new measurement of the peak memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """The peak memory since `reset_peak`, in GiB; None without a GPU."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def format_peak(peak: float | None) -> str:
    """The peak memory (GiB) as text."""
    return "no GPU" if peak is None else f"{peak:.1f} GiB"
