"""Jobs whose models compute NaN or infinities fail; they used to deliver black images as completed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ourvidz.errors import InternalError
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import image_job, video_job
from tests.pipelines.helpers import clip_levels, image_levels


@contextmanager
def output_with(module: torch.nn.Module, value: float) -> Iterator[None]:
    """One number of every output of `module` is `value`."""

    def replace(_: object, _inputs: object, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        tensor.view(-1)[0] = value

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("component", "model"), [("unet", "UNet"), ("vae.decoder", "VAE")])
def test_an_image_with_numbers_that_are_not_finite_fails(
    sdxl: SDXLPipeline, component: str, model: str, value: float
) -> None:
    """The message names the model that computed them; the next job is not affected."""
    name, _, inner = component.partition(".")
    module = getattr(sdxl._pipe, name).get_submodule(inner)
    with output_with(module, value), pytest.raises(InternalError, match=f"the {model} has NaN or infinite"):
        image_levels(sdxl, image_job())
    assert image_levels(sdxl, image_job()).max() > 0


@pytest.mark.parametrize(("component", "model"), [("transformer", "transformer"), ("vae.decoder", "VAE")])
def test_a_clip_with_numbers_that_are_not_finite_fails(wan: WanPipeline, component: str, model: str) -> None:
    """As an image does."""
    name, _, inner = component.partition(".")
    module = getattr(wan.components.pipe, name).get_submodule(inner)
    with (
        output_with(module, math.nan),
        pytest.raises(InternalError, match=f"the {model} has NaN or infinite"),
    ):
        clip_levels(wan, video_job())
    assert clip_levels(wan, video_job()).max() > 0
