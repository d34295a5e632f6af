from __future__ import annotations

import pytest
import torch

from ourvidz.vram import gpu
from ourvidz.vram.device import CudaDevice


def test_memory_is_reported_in_mib_gib_and_as_a_fraction() -> None:
    """Callbacks have the older GiB fields beside those in MiB; both come from the same reading."""
    assert gpu.report(used=8 << 30, total=48 << 30) == {
        "vram_used": 8192,
        "vram_total": 49152,
        "vram_utilization": 0.167,
        "vram_used_gb": 8.0,
        "vram_total_gb": 48.0,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_everything_is_zero() -> None:
    """Callbacks of CPU workers have the same fields."""
    assert set(gpu.memory().values()) == {0}
    assert gpu.free_mib() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_allocated_memory_is_part_of_the_reading() -> None:
    """The pressure levels are computed from this reading."""
    before = gpu.memory()
    taken = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    after = gpu.memory()
    assert after["vram_used"] - before["vram_used"] >= taken.nbytes // gpu.MIB
    assert 0 < after["vram_utilization"] <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_torch_keeps_of_a_job_is_given_back() -> None:
    """Others are granted this memory when the job has ended."""
    device = CudaDevice()
    torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    held_mib = device.own_mib()
    device.release("work")
    assert device.own_mib() <= held_mib - 1024


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_limited_process_is_told_that_the_device_is_full() -> None:
    """By torch's own error, while other processes have the memory."""
    device = CudaDevice()
    device.limit(device.own_mib() + 512)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    finally:
        device.limit(device.total_mib())
