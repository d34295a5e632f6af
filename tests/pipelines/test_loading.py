"""The size of a model before it is loaded equals that of the loaded one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ourvidz.errors import HubError
from ourvidz.hub.manifest import Manifest, unused, write_manifest
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import checkpoint_mib, loading
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.wan.pipeline import WanPipeline


@pytest.mark.parametrize("name", ["sdxl", "wan"])
def test_the_size_from_the_headers_is_that_of_the_loaded_weights(
    request: pytest.FixtureRequest, name: str
) -> None:
    """Memory is reserved by it before anything is read."""
    pipeline: SDXLPipeline | WanPipeline = request.getfixturevalue(name)
    assert checkpoint_mib(pipeline.checkpoint, pipeline.dtype) == pytest.approx(
        pipeline.info()["memory_mib"], abs=1
    )


def test_the_dtype_and_the_variant_that_are_loaded_count(tmp_path: Path) -> None:
    """Half precision on disk takes twice as much as float32; of two variants one is loaded."""
    unet = tmp_path / "unet"
    unet.mkdir()
    weights = {"weight": torch.zeros(1024, 1024, dtype=torch.float16)}
    save_file(weights, unet / "diffusion_pytorch_model.fp16.safetensors")
    checkpoint = Checkpoint(tmp_path, "folder")
    assert checkpoint_mib(checkpoint, torch.float16) == 2
    assert checkpoint_mib(checkpoint, torch.float32) == 4
    save_file(weights, unet / "diffusion_pytorch_model.safetensors")
    assert checkpoint_mib(checkpoint, torch.float16) == 2


def test_a_pulled_checkpoint_is_in_use_from_its_load_on(tmp_path: Path) -> None:
    """`ourvidz models rm` and a pull of another revision must not take its files."""
    write_manifest(tmp_path, Manifest("meadow/tiny", "main", "0" * 40, {}))
    with unused(tmp_path):
        pass
    with loading(Checkpoint(tmp_path, "folder")):
        pass
    with pytest.raises(HubError, match="is used by a running worker"), unused(tmp_path):
        pass
