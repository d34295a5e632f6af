"""Models without weights whose jobs take time, so that faults meet running jobs."""

from __future__ import annotations

import time
from typing import Any

from PIL import Image

from benchmarks.null_models import NullModels, NullPipeline
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages, OnStep
from ourvidz.settings import Settings

STEP_S = 0.02
"""Seconds that one step takes for each image of a job."""


class SlowPipeline(NullPipeline):
    """Returns images of one colour after `steps` steps, each of `STEP_S` seconds for each image."""

    def generate(self, job: ImageJob, *, on_step: OnStep, **_: Any) -> GeneratedImages:
        """Report every step; the colour comes from the seed."""
        steps = job.steps or 1
        started = time.monotonic()
        on_step(0, steps)
        for step in range(1, steps + 1):
            time.sleep(STEP_S * job.num_images)
            on_step(step, steps)
        images = [Image.new("RGB", (job.width, job.height), (seed % 256, 128, 128)) for seed in job.seeds]
        return GeneratedImages(images=images, seeds=job.seeds, seconds=time.monotonic() - started)


class SlowModels(NullModels):
    """The `Models` of a worker with only the slow pipeline."""

    def __init__(self) -> None:
        self._pipeline = SlowPipeline()


def build(settings: Settings, family: str) -> SlowModels:  # noqa: ARG001
    """Build the slow models; `OURVIDZ_MODELS=campaigns.slow_models:build` names this function."""
    return SlowModels()
