"""Models for real worker processes whose jobs last until the test lets them finish; nothing imports torch.

`OURVIDZ_MODELS=tests.system.paced_models:build`. An image job goes on as long as the file `finish` is missing
in the state directory. Loading fails as long as the file `broken` is there, and is tried again soon.
Texts have `TOKENS` tokens. After a few, one whose prompt contains `POISON` kills the process, and one whose
prompt contains `HANG` stops the batch for ever.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from PIL import Image

from ourvidz import warmup
from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ChatJob, ImageJob
from ourvidz.pipelines.base import GeneratedImages, OnImage, OnStep, TextDelta
from ourvidz.settings import Settings

STEP_S = 0.02
TOKENS, FATAL_TOKEN = 20, 10
POISON, HANG = "volcano", "glacier"


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

    def texts(self, model: str) -> PacedModels:
        return self

    def new_decoder(self) -> PacedDecoder:
        return PacedDecoder()

    def flush(self) -> None:
        """Holds no memory."""

    def info(self) -> dict[str, Any]:
        return {"name": "paced", "inference_engine": "paced", "sdxl": {"name": "paced", "device": "cpu"}}

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
        checkpoints: Any = None,
    ) -> GeneratedImages:
        started_at = time.monotonic()
        on_step(0, 100)
        while not self._finish.exists():
            time.sleep(STEP_S)
            on_step(1, 100)
        image = Image.new("RGB", (job.width, job.height), "teal")
        on_image(0, image)
        return GeneratedImages(images=[image], seeds=[job.seed], seconds=time.monotonic() - started_at)


class PacedDecoder:
    """Decodes any number of texts, one token of each per step."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[ChatJob, int]] = {}

    def add(self, key: str, job: ChatJob) -> int:
        self._texts[key] = (job, 0)
        return 1

    def step(self) -> list[TextDelta]:
        time.sleep(STEP_S)
        deltas = []
        for key, (job, before) in list(self._texts.items()):
            tokens = before + 1
            self._texts[key] = (job, tokens)
            if tokens == FATAL_TOKEN and POISON in job.last_user_message:
                os.kill(os.getpid(), signal.SIGKILL)
            while tokens == FATAL_TOKEN and HANG in job.last_user_message:
                time.sleep(STEP_S)
            deltas.append(TextDelta(key, "sea ", tokens, "stop" if tokens == TOKENS else None))
        return deltas

    def remove(self, key: str) -> None:
        self._texts.pop(key, None)


def build(settings: Settings, family: str) -> Any:
    """The builder that `OURVIDZ_MODELS` names. Called in the worker's child."""
    warmup.FIRST_DELAY_S, warmup.MAX_DELAY_S = 0.1, 0.3
    return PacedModels(settings.state_dir)
