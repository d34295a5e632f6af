"""Checkpoints with random weights: reproducible, small, and without side effects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from training.untrained import sdxl, wan

Build = Callable[[Path], None]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("build", [sdxl.build, wan.build], ids=["sdxl", "wan"])
def test_every_build_writes_the_same_files(build: Build, tmp_path: Path) -> None:
    """A seed must give the same image on two machines, whatever torch's random state."""
    build(tmp_path / "one")
    torch.manual_seed(1)
    build(tmp_path / "other")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")
    assert (tmp_path / "one" / "model_index.json").is_file()


@pytest.mark.parametrize("build", [sdxl.build, wan.build], ids=["sdxl", "wan"])
def test_building_leaves_the_random_state_unchanged(build: Build, tmp_path: Path) -> None:
    """A library that reseeds torch makes other random numbers repeat."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(tmp_path / "built")
    assert torch.equal(torch.rand(3), expected)


def test_the_unet_is_small(untrained_sdxl: Path) -> None:
    """Tests run it on a laptop's CPU."""
    unet = UNet2DConditionModel.from_pretrained(untrained_sdxl / "unet", local_files_only=True)
    assert sum(weight.numel() for weight in unet.parameters()) < 1_200_000
