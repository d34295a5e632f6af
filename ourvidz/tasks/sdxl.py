"""The task of the SDXL worker."""

from __future__ import annotations

from typing import Any

from ourvidz import signals  # noqa: F401  a worker's child imports only the task modules
from ourvidz.app import app
from ourvidz.tasks.base import GenerationTask
from ourvidz.workflows.image import generate_images


@app.task(name="ourvidz.sdxl.generate", base=GenerationTask, bind=True, family="sdxl")
def generate(self: GenerationTask, message: dict[str, Any]) -> dict[str, Any]:
    """Generate and store the images of one SDXL job. Returns its id and status."""
    return self.run_job(message, generate_images)
