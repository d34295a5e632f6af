"""The memory of the GPU this process sees."""

from __future__ import annotations

from typing import Any

import torch

MIB = 1 << 20
GIB = 1 << 30


def memory() -> dict[str, Any]:
    """Return the GPU memory used by all processes: `vram_used`, `vram_total` in MiB, `vram_used_gb`,
    `vram_total_gb` in GiB, `vram_utilization` from 0 to 1. Zeros without a GPU.
    """
    free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
    return report(used=total - free, total=total)


def free_mib() -> int | None:
    """Return the free memory of the GPU in MiB; None without a GPU."""
    return torch.cuda.mem_get_info()[0] // MIB if torch.cuda.is_available() else None


def report(*, used: int, total: int) -> dict[str, Any]:
    """Return the fields of `memory`, computed from bytes."""
    return {
        "vram_used": used // MIB,
        "vram_total": total // MIB,
        "vram_utilization": round(used / total, 3) if total else 0.0,
        "vram_used_gb": round(used / GIB, 2),
        "vram_total_gb": round(total / GIB, 2),
    }
