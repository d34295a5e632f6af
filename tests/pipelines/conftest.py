from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.pipelines.checkpoints import Checkpoint, find_wan
from ourvidz.pipelines.sdxl import SDXLPipeline
from ourvidz.pipelines.tiny_sdxl import tiny_sdxl
from ourvidz.pipelines.tiny_wan import tiny_wan
from ourvidz.pipelines.wan import WanPipeline


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


@pytest.fixture(scope="session", params=["random"])
def wan_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint with random weights. What only trained weights can show asks for them by
    `@pytest.mark.parametrize("wan_checkpoint", ["trained"], indirect=True)`.
    """
    if request.param == "trained":
        return find_wan(None)
    return Checkpoint(tiny_wan(tmp_path_factory.mktemp("wan")), "tiny")


@pytest.fixture(scope="session")
def wan(wan_checkpoint: Checkpoint) -> WanPipeline:
    """A warm tiny pipeline, as the tiny profile runs it."""
    pipeline = WanPipeline(wan_checkpoint, cap=128)
    pipeline.load()
    return pipeline


@pytest.fixture(scope="session")
def video_job() -> Callable[..., VideoJob]:
    """Makes small jobs of five frames; keywords change their fields."""

    def make(**changed: Any) -> VideoJob:
        fields: dict[str, Any] = {
            "id": "job-1",
            "type": "video_fast",
            "user_id": "user-1",
            "expected_time": 180,
            "prompt": "a red circle on a green field",
            "steps": 2,
            "guidance_scale": 6.5,
            "width": 32,
            "height": 32,
            "frames": 5,
            "seed": 7,
        }
        return VideoJob(**(fields | changed))

    return make
