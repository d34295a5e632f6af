"""The task of the SDXL worker."""

from __future__ import annotations

from typing import Any

from ourvidz import signals  # noqa: F401  a worker's child imports only the task modules
from ourvidz.app import app
from ourvidz.tasks.base import GenerationTask


@app.task(name="ourvidz.sdxl.generate", base=GenerationTask, bind=True, family="sdxl")
def generate(self: GenerationTask, message: dict[str, Any]) -> dict[str, Any]:
    """Generate and store the images of one SDXL job. Returns its id and status."""
    # Imported here: the worker's parent registers this task and makes no images.
    from ourvidz.workflows.image import generate_images

    return self.run_job(message, generate_images)
