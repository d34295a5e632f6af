"""The task of the Wan worker."""

from __future__ import annotations

from typing import Any

from ourvidz import signals  # noqa: F401  a worker's child imports only the task modules
from ourvidz.app import app
from ourvidz.tasks.base import GenerationTask


@app.task(name="ourvidz.wan.generate", base=GenerationTask, bind=True, family="wan")
def generate(self: GenerationTask, message: dict[str, Any]) -> dict[str, Any]:
    """Generate and store the clip or image of one Wan job. Returns its id and status."""
    # Imported here: the worker's parent registers this task and makes no clips.
    from ourvidz.workflows.video import generate_video

    return self.run_job(message, generate_video)
