"""Where pipelines run, and what it means to run out of room there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
import transformers

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""By the names that settings use."""

_NO_ROOM = (
    "DefaultCPUAllocator",
    "not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def best_device() -> torch.device:
    """The GPU if there is one. A worker sees at most one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """Half precision on a GPU, single on a CPU, which has no fast half."""
    return torch.float16 if device.type == "cuda" else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out. On a CPU, and from inside CUDA's libraries, torch raises
    other RuntimeErrors for that than its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM)


def free_memory() -> None:
    """Give what nothing refers to any more back to the device.

    Call it outside an `except` block: while an error is handled, its traceback keeps the tensors of every
    frame alive.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch compute on so many CPU threads for a while; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quiet_libraries() -> None:
    """No progress bars and no warnings: diffusers would quote the cut end of a long prompt in the log."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
