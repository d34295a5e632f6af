"""Models that return a grey image at once, to measure the job system alone."""

from __future__ import annotations

import time
from typing import Any

from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages, OnStep
from ourvidz.settings import Settings


class NullPipeline:
    """An `ImagePipeline` without a model."""

    def load(self) -> None:
        """Do nothing."""

    def unload(self) -> None:
        """Do nothing."""

    def info(self) -> dict[str, Any]:
        """Name, load state and device."""
        return {"name": "null", "loaded": True, "device": "none"}

    def generate(self, job: ImageJob, *, on_step: OnStep, **_: Any) -> GeneratedImages:
        """Report one step, and return grey images of the requested size."""
        on_step(0, 1)
        on_step(1, 1)
        image = Image.new("RGB", (job.width, job.height), (128, 128, 128))
        return GeneratedImages(images=[image] * job.num_images, seeds=job.seeds, seconds=0.0)


class NullModels:
    """The `Models` of a worker with only the null pipeline."""

    def __init__(self, pipeline: NullPipeline | None = None) -> None:
        self._pipeline = pipeline or NullPipeline()

    def warm(self) -> None:
        """Do nothing."""

    def images(self) -> NullPipeline:
        """The null pipeline."""
        return self._pipeline

    def reload(self) -> None:
        """Do nothing."""

    def info(self) -> dict[str, Any]:
        """The info of the null pipeline."""
        return self._pipeline.info()

    def memory(self) -> dict[str, Any]:
        """No memory figures."""
        return {}


def build(settings: Settings, family: str) -> NullModels:  # noqa: ARG001
    """Build the null models; `OURVIDZ_MODELS=benchmarks.null_models:build` names this function."""
    return NullModels()


SLEEP_S = 1.0
"""How long a job of the sleeping pipeline takes."""


class SleepingPipeline(NullPipeline):
    """A null pipeline that takes `SLEEP_S` for each job, in ten steps, and leaves the processor alone."""

    def generate(self, job: ImageJob, *, on_step: OnStep, **_: Any) -> GeneratedImages:
        """Sleep between steps, and return grey images of the requested size."""
        steps = 10
        for step in range(steps):
            on_step(step, steps)
            time.sleep(SLEEP_S / steps)
        return super().generate(job, on_step=lambda *_: None)


def build_sleeping(settings: Settings, family: str) -> NullModels:  # noqa: ARG001
    """Build null models with the sleeping pipeline; for `OURVIDZ_MODELS`."""
    return NullModels(SleepingPipeline())
