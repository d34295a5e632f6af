"""Devices, dtypes, and out-of-memory errors."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
import transformers

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""By setting value."""

_libc = ctypes.CDLL(None)
_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator",
    "not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU. A worker sees at most one GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """float16 on a GPU; float32 on a CPU, where half precision is slow."""
    return torch.float16 if device.type == "cuda" else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error. On a CPU and inside CUDA libraries torch raises a plain
    RuntimeError, which is recognised by its message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_MESSAGES)


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can still take on a GPU: what no process holds, and the freed blocks that
    torch keeps. None on a CPU."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def free_memory() -> None:
    """Return memory that nothing references any more to the device and to the system.

    Call it outside an `except` block: while an error is handled, its traceback keeps the tensors of every
    frame alive.
    """
    exempt = gc.get_freeze_count()
    # A worker exempts from collection what it loaded at its start; a model among it may have cycles.
    gc.unfreeze()
    gc.collect()
    if exempt:
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return what is free in this process's heap to the system. glibc keeps the freed buffers of a
    computation, of which loading a model makes large ones. Does nothing with another C library."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads inside this context; None does not change it."""
    previous = torch.get_num_threads()
    if count is None or count == previous:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def quiet_libraries() -> None:
    """Switch off progress bars and warnings of diffusers and transformers. One of the warnings would write
    the truncated end of a long prompt to the log."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
