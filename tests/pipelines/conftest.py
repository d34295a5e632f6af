from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.wan.pipeline import WanPipeline


@pytest.fixture(scope="session")
def sdxl_checkpoint(untrained_sdxl: Path) -> Checkpoint:
    """The SDXL checkpoint with random weights."""
    return Checkpoint(untrained_sdxl, "tiny")


@pytest.fixture(scope="session")
def sdxl(sdxl_checkpoint: Checkpoint) -> SDXLPipeline:
    """A loaded pipeline with random weights, as the tiny profile runs it."""
    pipeline = SDXLPipeline(sdxl_checkpoint, cap=128)
    pipeline.load()
    return pipeline


@pytest.fixture(scope="session")
def wan_checkpoint(untrained_wan: Path) -> Checkpoint:
    """The Wan checkpoint with random weights."""
    return Checkpoint(untrained_wan, "tiny")


@pytest.fixture(scope="session")
def wan(wan_checkpoint: Checkpoint) -> WanPipeline:
    """A loaded pipeline with random weights, as the tiny profile runs it."""
    pipeline = WanPipeline(wan_checkpoint, cap=128)
    pipeline.load()
    return pipeline


@pytest.fixture(scope="session")
def qwen() -> Callable[[QwenVariant], QwenPipeline]:
    """The loaded pipeline of a packaged Qwen checkpoint, `instruct` or `base`."""

    @cache
    def load(variant: QwenVariant) -> QwenPipeline:
        pipeline = QwenPipeline(find_qwen(None, variant), variant)
        pipeline.load()
        return pipeline

    return load
