"""A pipeline that makes the same grey picture at once: what is left is the job system."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages, OnStep
from ourvidz.settings import Settings


class NullPipeline:
    """Implements `ImagePipeline` without a model."""

    def load(self) -> None:
        """Nothing to load."""

    def unload(self) -> None:
        """Nothing to unload."""

    def info(self) -> dict[str, Any]:
        """What it is."""
        return {"name": "null", "loaded": True, "device": "none"}

    def generate(self, job: ImageJob, *, on_step: OnStep, **_: Any) -> GeneratedImages:
        """One step, and grey pictures of the size that was asked for."""
        on_step(0, 1)
        on_step(1, 1)
        picture = Image.new("RGB", (job.width, job.height), (128, 128, 128))
        return GeneratedImages(images=[picture] * job.num_images, seeds=job.seeds, seconds=0.0)


class NullModels:
    """Implements `Models` with it."""

    def __init__(self) -> None:
        self._pipeline = NullPipeline()

    def warm(self) -> None:
        """Nothing to load."""

    def images(self) -> NullPipeline:
        """The null pipeline."""
        return self._pipeline

    def reload(self) -> None:
        """Nothing to load."""

    def info(self) -> dict[str, Any]:
        """What it is."""
        return self._pipeline.info()

    def memory(self) -> dict[str, Any]:
        """No GPU."""
        return {}


def build(settings: Settings, family: str) -> NullModels:  # noqa: ARG001
    """What `OURVIDZ_MODELS=benchmarks.null_models:build` names."""
    return NullModels()
