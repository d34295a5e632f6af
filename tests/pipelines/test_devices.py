"""Recognition of out-of-memory errors, and torch's threads."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path

import pytest
import torch

from ourvidz.pipelines import devices


@pytest.mark.parametrize(
    ("error", "out_of_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("CUDA out of memory"), False),
    ],
    ids=lambda value: str(value)[:48] if isinstance(value, Exception) else "",
)
def test_out_of_memory_errors_are_recognised_by_type_or_message(
    error: Exception, out_of_memory: bool
) -> None:
    """torch, cuBLAS and cuDNN have different messages; other errors must not be retried."""
    assert devices.is_out_of_memory(error) is out_of_memory


def test_torch_threads_restores_the_previous_number() -> None:
    """Other models in the process use all of them."""
    previous = torch.get_num_threads()
    with devices.torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == previous


def test_memory_of_what_was_loaded_at_the_start_can_be_freed(collector, monkeypatch) -> None:
    """A worker exempts its models from garbage collection; one that is unloaded may refer to itself."""
    monkeypatch.setattr(devices, "gc", collector)

    class Model:
        pass

    model = Model()
    model.itself = model  # type: ignore[attr-defined]
    freed = weakref.ref(model)
    collector.freeze()
    del model
    collector.collect()
    assert freed() is not None
    devices.free_memory()
    assert freed() is None
    assert collector.get_freeze_count() > 0


def test_freed_buffers_return_to_the_system() -> None:
    """A worker would hold the buffers of its loading for as long as it lives. An array that is still in use
    keeps the C library from returning what lies below it in the heap."""

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / (1 << 20)

    buffers = [torch.ones(16 * 1024) for _ in range(1600)]
    kept = torch.ones(16 * 1024)
    before = resident_mib()
    del buffers
    devices.trim_heap()
    assert before - resident_mib() > 50
    assert kept[0] == 1
