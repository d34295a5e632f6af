from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl import SDXLPipeline
from ourvidz.pipelines.tiny_sdxl import tiny_sdxl


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint with random weights."""
    return Checkpoint(tiny_sdxl(tmp_path_factory.mktemp("checkpoints")), "tiny")


@pytest.fixture(scope="session")
def sdxl(tiny: Checkpoint) -> SDXLPipeline:
    """A warm tiny pipeline, as the tiny profile runs it."""
    pipeline = SDXLPipeline(tiny, cap=128)
    pipeline.load()
    return pipeline


@pytest.fixture(scope="session")
def image_job() -> Callable[..., ImageJob]:
    """Makes small jobs; keywords change their fields."""

    def make(**changed: Any) -> ImageJob:
        fields: dict[str, Any] = {
            "id": "job-1",
            "type": "sdxl_image_fast",
            "user_id": "user-1",
            "expected_time": 30,
            "prompt": "a red circle on a green field",
            "steps": 2,
            "guidance_scale": 6.0,
            "width": 64,
            "height": 64,
            "seed": 7,
        }
        return ImageJob(**(fields | changed))

    return make
