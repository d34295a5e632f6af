"""The memory of the GPU this process sees."""

from __future__ import annotations

from typing import Any

import torch

MIB = 1 << 20
GIB = 1 << 30


def memory() -> dict[str, Any]:
    """What is used on the GPU, by everybody: `vram_used`, `vram_total` in MiB, `vram_used_gb`,
    `vram_total_gb` in GiB, `vram_utilization` from 0 to 1. Zeros where there is no GPU.
    """
    free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
    return report(used=total - free, total=total)


def free_mib() -> int | None:
    """What is free on the GPU (MiB); None where there is none."""
    return torch.cuda.mem_get_info()[0] // MIB if torch.cuda.is_available() else None


def report(*, used: int, total: int) -> dict[str, Any]:
    """The same numbers from bytes."""
    return {
        "vram_used": used // MIB,
        "vram_total": total // MIB,
        "vram_utilization": round(used / total, 3) if total else 0.0,
        "vram_used_gb": round(used / GIB, 2),
        "vram_total_gb": round(total / GIB, 2),
    }
