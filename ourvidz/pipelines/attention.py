"""Selects one of torch's scaled-dot-product attention kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""By setting value. A kernel that the device does not have fails with the first job, not when selected."""


_SHAPELESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def any_length() -> Iterator[None]:
    """Restrict torch to the kernels that run any length without preparation inside this context: for texts,
    which are a token longer in every pass. cuDNN's builds a plan for each shape and keeps all of them."""
    with sdpa_kernel(_SHAPELESS):
        yield


@contextmanager
def attention_kernel(name: str | None) -> Iterator[None]:
    """Restrict torch to one kernel of the table inside this context; None leaves the choice to torch."""
    if name is None:
        yield
        return
    with sdpa_kernel(ATTENTION_KERNELS[name]):
        yield
