"""Models for real worker processes whose jobs last until the test lets them finish; nothing imports torch.

`OURVIDZ_MODELS=tests.system.paced_models:build`. A job goes on as long as the file `finish` is missing in the
state directory. Loading fails as long as the file `broken` is there, and is tried again after a moment.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from PIL import Image

from ourvidz import warmup
from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages, OnImage, OnStep
from ourvidz.settings import Settings

STEP_S = 0.02


class PacedModels:
    """The models of one worker, and their only pipeline."""

    def __init__(self, state_dir: Path) -> None:
        self._finish = state_dir / "finish"
        self._broken = state_dir / "broken"

    def warm(self) -> None:
        if self._broken.exists():
            raise ModelLoadError("the file system is not mounted")

    def reload(self) -> None:
        self.warm()

    def images(self) -> PacedModels:
        return self

    def flush(self) -> None:
        """Holds no memory."""

    def info(self) -> dict[str, Any]:
        return {"sdxl": {"name": "paced", "device": "cpu"}}

    def memory(self) -> dict[str, Any]:
        return {}

    def generate(
        self,
        job: ImageJob,
        *,
        on_step: OnStep,
        on_image: OnImage,
        reference: Any = None,
        on_preview: Any = None,
    ) -> GeneratedImages:
        started_at = time.monotonic()
        on_step(0, 100)
        while not self._finish.exists():
            time.sleep(STEP_S)
            on_step(1, 100)
        image = Image.new("RGB", (job.width, job.height), "teal")
        on_image(0, image)
        return GeneratedImages(images=[image], seeds=[job.seed], seconds=time.monotonic() - started_at)


def build(settings: Settings, family: str) -> Any:
    """The builder that `OURVIDZ_MODELS` names. Called in the worker's child."""
    warmup.FIRST_DELAY_S, warmup.MAX_DELAY_S = 0.1, 0.3
    return PacedModels(settings.state_dir)
