"""Which of torch's attention kernels is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""torch's own attention kernels; which of them a device has is said by the first job."""


@contextmanager
def attending(kernel: str | None) -> Iterator[None]:
    """Attention by one kernel of the table alone; None leaves the choice to torch."""
    if kernel is None:
        yield
        return
    with sdpa_kernel(ATTENTION[kernel]):
        yield
