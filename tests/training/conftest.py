from __future__ import annotations

from pathlib import Path

import pytest

from training.sdxl.__main__ import Stages
from training.sdxl.models import Shape
from training.sdxl.recipe import Recipe


@pytest.fixture
def minute_recipe() -> Recipe:
    """A recipe whose stages take about a second each: a few steps of models with a few thousand weights."""
    return Recipe(
        shape=Shape(
            vae_channels=(16, 16, 16, 16), unet_channels=(16, 32), unet_heads=(2, 2), text_widths=(16, 24)
        ),
        vae_steps=6,
        vae_batch=2,
        latents=12,
        sizes={(64, 64): 0.8, (64, 96): 0.2},
        unet_steps=6,
        unet_batch=2,
        evaluated=2,
        drawn=3,
    )


@pytest.fixture
def stages(minute_recipe: Recipe, tmp_path: Path) -> Stages:
    """The stages of a training run in a temporary folder."""
    return Stages(minute_recipe, tmp_path / "run")
