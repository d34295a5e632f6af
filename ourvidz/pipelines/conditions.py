"""The conditions that decide the result of a job, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch
from PIL.Image import Image

from ourvidz import __version__
from ourvidz.jobs.job import BaseJob
from ourvidz.pipelines.tensor_cache import cache_key, image_digest

LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What decides the result of a job, bit for bit: the job, its reference images, the digest of the
    weights, the options of the pipeline (compared as text), and where it is computed."""

    job: BaseJob
    images: Sequence[Image | None]
    weights: str
    options: object
    dtype: torch.dtype
    device: torch.device

    def key(self) -> dict[str, str]:
        """The conditions by name, as a checkpoint stores them."""
        return {
            "job": hashlib.sha256(self.job.model_dump_json().encode()).hexdigest(),
            "reference": cache_key([image and image_digest(image) for image in self.images]),
            "weights": self.weights,
            "options": repr(self.options),
            "libraries": library_versions(),
            "dtype": str(self.dtype),
            "device": device_kind(self.device),
        }


@cache
def library_versions() -> str:
    """This release and the libraries that compute."""
    return " ".join([f"ourvidz {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)])


def device_kind(device: torch.device) -> str:
    """The model of a GPU, or the instruction set of a CPU: others round differently."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
