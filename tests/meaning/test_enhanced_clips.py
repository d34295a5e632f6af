"""Clips of the trained tiny-wan from prompts that the trained tiny-qwen enhanced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.qwen.clips import evaluate_clips

SEED = 7
CLIPS = 16

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def scores(trained: Callable[[str], Path]) -> dict[str, Any]:
    """The scores of short clips from the same prompts, plain and enhanced."""
    return evaluate_clips(
        trained("tiny-qwen"), count=CLIPS, seed=SEED, wan=trained("tiny-wan"), frames=9, steps=12
    )


@pytest.mark.parametrize("name", ["background", "colour", "motion"])
def test_enhanced_clips_are_as_good_as_plain_ones(scores: dict[str, Any], name: str) -> None:
    """Enhancement keeps the colours and motions of prompts.

    One clip may differ by chance; a model that garbles verbs loses six of sixteen motions.
    """
    plain, enhanced = (scores[f"clips from {kind} prompts"][name] for kind in ("plain", "enhanced"))
    assert enhanced >= plain - 1 / CLIPS
