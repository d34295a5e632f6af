"""Keeps encoded prompts and reference images, so that an encoder runs once for equal inputs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch
from PIL.Image import Image

BYTES_PER_MIB = 1 << 20

Tensors = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """How many inputs were found, and how many had to be encoded."""

    hits: int = 0
    misses: int = 0

    def since(self, earlier: CacheCounts) -> CacheCounts:
        """The counts without those of an earlier time."""
        return CacheCounts(self.hits - earlier.hits, self.misses - earlier.misses)


class TensorCache:
    """Tensors by key in the memory of the host, at most `capacity_mib` MiB of them; the least recently used
    leave first. With 0 nothing is kept.

    What goes in and what comes out are copies, so no later stage can change an entry. Entries survive the
    unloading of a model: their keys name its weights, so another model does not find them.
    """

    def __init__(self, capacity_mib: int = 0) -> None:
        self.capacity_bytes = capacity_mib * BYTES_PER_MIB
        self.counts = CacheCounts()
        self._entries: OrderedDict[str, Tensors] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, device: torch.device) -> Tensors | None:
        """A copy of an entry on `device`; None without one."""
        entry = self._entries.get(key)
        if entry is None:
            self.counts = CacheCounts(self.counts.hits, self.counts.misses + 1)
            return None
        self.counts = CacheCounts(self.counts.hits + 1, self.counts.misses)
        self._entries.move_to_end(key)
        return tuple(None if tensor is None else tensor.to(device, copy=True) for tensor in entry)

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep a copy of these tensors. An entry larger than the whole cache is not kept."""
        size = _bytes(tensors)
        if size > self.capacity_bytes:
            return
        self._drop(key)
        self._entries[key] = tuple(
            None if tensor is None else tensor.detach().to("cpu", copy=True) for tensor in tensors
        )
        self._bytes += size
        while self._bytes > self.capacity_bytes:
            self._drop(next(iter(self._entries)))

    def info(self) -> dict[str, int]:
        """Entries, their size and the largest allowed size (MiB, rounded up), hits and misses since the start
        of the process."""
        return {
            "entries": len(self._entries),
            "mib": -(-self._bytes // BYTES_PER_MIB),
            "capacity_mib": self.capacity_bytes // BYTES_PER_MIB,
            "hits": self.counts.hits,
            "misses": self.counts.misses,
        }

    def clear(self) -> None:
        """Keep nothing of what was put."""
        self._entries.clear()
        self._bytes = 0

    def _drop(self, key: str) -> None:
        self._bytes -= _bytes(self._entries.pop(key, ()))


def cache_key(*components: object) -> str:
    """The key of what is computed from these components: texts, numbers, tuples, dtypes, devices. A digest,
    so that a cache holds no prompts."""
    return hashlib.sha256(repr(components).encode("utf-8", "surrogatepass")).hexdigest()


def image_digest(image: Image) -> str:
    """A digest of the pixels and the size of an image."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """A digest of values, shape and dtype of a tensor."""
    header = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = hashlib.sha256(header)
    digest.update(content.data)
    return digest.hexdigest()


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
