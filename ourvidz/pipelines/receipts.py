"""The receipt of a result: everything that its pixels depend on beside the job, and a digest of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from PIL.Image import Image

from ourvidz import __version__
from ourvidz.pipelines.conditions import device_kind
from ourvidz.pipelines.identity import Weights

LIBRARIES = ("torch", "diffusers", "transformers", "compel", "numpy", "pillow")
"""The libraries whose versions may change pixels."""
DIGEST_CHARS = 32
"""Length of a digest of pixels: 128 bits."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What one pipeline runs with: its weights, device and dtype, the name of the scheduler, and the
    operator's options."""

    weights: Weights
    device: torch.device
    dtype: torch.dtype
    scheduler: str
    options: Mapping[str, Any]


def build_receipt(
    environment: Environment,
    *,
    used_weights: Collection[str],
    seeds: Sequence[int],
    batch_size: int,
    memory_rung: str,
    references: Iterable[Image],
    results: Iterable[Sequence[Image]],
) -> dict[str, Any]:
    """The receipt of one job as JSON.

    `used_weights` are the labels of those added weights that the job used. `results` are its images, each a
    sequence of one, or its clip, the sequence of its frames. `references` are the images that it was
    conditioned on, `memory_rung` is the OOM fallback that it ended with.
    """
    weights, options = environment.weights, environment.options
    added = {label: digest for label, digest in weights.added.items() if label in used_weights}
    return {
        "checkpoint": weights.checkpoint,
        **({"added_weights": added} if added else {}),
        "version": __version__,
        "libraries": _library_versions(),
        "device": device_kind(environment.device),
        "dtype": str(environment.dtype).removeprefix("torch."),
        "scheduler": environment.scheduler,
        "options": {name: value for name, value in options.items() if value and not isinstance(value, list)},
        "seeds": list(seeds),
        "batch_size": batch_size,
        "memory_rung": memory_rung,
        "references": [pixels_digest([image]) for image in references],
        "results": [pixels_digest(images) for images in results],
    }


def pixels_digest(images: Sequence[Image]) -> str:
    """A digest of sizes and pixels of images, in their order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode}{image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:DIGEST_CHARS]


@cache
def _library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
