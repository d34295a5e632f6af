"""The trained checkpoints: those that ship, or the ones that are being tried.

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
    """The folder of a trained checkpoint, by its name. Without one the test is skipped, under CI it fails."""

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
    """The trained tiny-wan, warm, as the tiny profile loads it."""
    return open_pipeline(wan_folder)


@pytest.fixture(scope="session")
def decibels() -> Callable[[ArrayLike, ArrayLike], float]:
    """Peak signal-to-noise ratio of two 8-bit pictures or clips: more is closer."""

    def between(one: ArrayLike, other: ArrayLike) -> float:
        apart = np.asarray(one).astype(float) - np.asarray(other).astype(float)
        return float(10 * np.log10(255**2 / max(np.mean(apart**2), 1e-9)))

    return between
