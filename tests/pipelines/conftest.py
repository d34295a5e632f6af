from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ourvidz.jobs.job import ChatJob, ImageJob, Message, VideoJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.wan.pipeline import WanPipeline


@pytest.fixture(scope="session")
def tiny(untrained_sdxl: Path) -> Checkpoint:
    """The tiny checkpoint with random weights."""
    return Checkpoint(untrained_sdxl, "tiny")


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


@pytest.fixture(scope="session")
def wan_checkpoint(untrained_wan: Path) -> Checkpoint:
    """The tiny checkpoint with random weights."""
    return Checkpoint(untrained_wan, "tiny")


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


@pytest.fixture(scope="session")
def qwen() -> Callable[[str], QwenPipeline]:
    """The language models that ship, warm: `instruct` or `base`."""
    variants: dict[str, QwenVariant] = {"instruct": "instruct", "base": "base"}
    made: dict[str, QwenPipeline] = {}

    def give(variant: str) -> QwenPipeline:
        if variant not in made:
            made[variant] = QwenPipeline(find_qwen(None, variants[variant]), variants[variant])
            made[variant].load()
        return made[variant]

    return give


@pytest.fixture(scope="session")
def chat_job() -> Callable[..., ChatJob]:
    """Makes short greedy text jobs of one message, a system prompt before it or none; keywords change their
    fields."""

    def make(text: str = "a red circle", *, system: str | None = None, **changed: Any) -> ChatJob:
        opening = [] if system is None else [Message(role="system", content=system)]
        fields: dict[str, Any] = {
            "id": "job-1",
            "type": "chat_conversation",
            "expected_time": 15,
            "messages": (*opening, Message(role="user", content=text)),
            "max_tokens": 48,
            "temperature": 0.0,
            "seed": 7,
        }
        return ChatJob(**(fields | changed))

    return make
