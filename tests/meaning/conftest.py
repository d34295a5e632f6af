"""Fixtures of the trained checkpoints: the packaged ones, or other exports.

`$TINY_SDXL_DIR`, `$TINY_WAN_DIR` and `$TINY_QWEN_DIR` name other exported folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.pipelines.wan.pipeline import WanPipeline
from training.wan.evaluate import open_pipeline

HAS = {
    "tiny-sdxl": "model_index.json",
    "tiny-wan": "model_index.json",
    "tiny-qwen": "instruct/config.json",
}
"""A file that only an exported folder has."""


@pytest.fixture(scope="session")
def trained() -> Callable[[str], Path]:
    """Returns the folder of a trained checkpoint by name. Without it the test is skipped, and fails in CI."""

    def folder(name: str) -> Path:
        given = os.environ.get(f"{name.upper().replace('-', '_')}_DIR")
        found = Path(given) if given else PACKAGED / name
        if not (found / HAS[name]).is_file():
            missing = f"there is no trained {name} in {found}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
        return found

    return folder


@pytest.fixture(scope="session")
def wan_folder(trained: Callable[[str], Path]) -> Path:
    """The trained tiny-wan."""
    return trained("tiny-wan")


@pytest.fixture(scope="session")
def wan(wan_folder: Path) -> WanPipeline:
    """The loaded pipeline of the trained tiny-wan, configured as in the tiny profile."""
    return open_pipeline(wan_folder)


@pytest.fixture(scope="session")
def decibels() -> Callable[[ArrayLike, ArrayLike], float]:
    """Peak signal-to-noise ratio (dB) of two 8-bit images or clips."""

    def between(one: ArrayLike, other: ArrayLike) -> float:
        apart = np.asarray(one).astype(float) - np.asarray(other).astype(float)
        return float(10 * np.log10(255**2 / max(np.mean(apart**2), 1e-9)))

    return between
