"""The VAE of SDXL in half precision."""

from __future__ import annotations

import pytest
import torch

from ourvidz.errors import InternalError
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import MAX_DIFFERENCE, difference, image_levels

MAX_BFLOAT16_DIFFERENCE = 8
"""Of 255 levels."""


@pytest.fixture
def half(sdxl_checkpoint: Checkpoint) -> SDXLPipeline:
    """A pipeline whose VAE is in float16 and need not be converted, according to its config."""
    pipeline = SDXLPipeline(sdxl_checkpoint)
    pipeline.load()
    pipeline._pipe.vae.register_to_config(force_upcast=False)
    pipeline._pipe.vae.half()
    return pipeline


def scale_decoder(pipeline: SDXLPipeline, factor: float) -> None:
    """Scale the first layer of the decoder, whose outputs are normalised later."""
    with torch.no_grad():
        pipeline._pipe.vae.decoder.conv_in.weight *= factor


def test_an_overflow_in_half_precision_is_decoded_in_float32(half: SDXLPipeline) -> None:
    """The image is the one that float32 gives from the start, and not a black one."""
    scale_decoder(half, 1e5)
    image = image_levels(half, image_job())
    assert half._pipe.vae.dtype == torch.float32
    assert difference(image, image_levels(half, image_job())) <= MAX_DIFFERENCE


def test_a_vae_without_overflow_stays_in_half_precision(half: SDXLPipeline) -> None:
    """It needs half the memory."""
    image_levels(half, image_job())
    assert half._pipe.vae.dtype == torch.float16


def test_a_vae_that_overflows_in_float32_too_fails_the_job(half: SDXLPipeline) -> None:
    """Its weights are broken."""
    scale_decoder(half, float("nan"))
    with pytest.raises(InternalError, match="the VAE has NaN or infinite"):
        image_levels(half, image_job())


def test_a_vae_that_must_not_run_in_float16_runs_in_the_chosen_dtype(sdxl_checkpoint: Checkpoint) -> None:
    """In bfloat16 decoding takes half the memory of float32, and the image is nearly the same."""
    images, sizes = [], []
    for dtype in ("bfloat16", None):
        pipeline = SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(vae_dtype=dtype))
        pipeline.load()
        vae = pipeline._pipe.vae
        vae.half()
        assert vae.config.force_upcast
        sizes.append(pipeline._model.vae.decode_bytes((1024, 1024)))
        images.append(image_levels(pipeline, image_job()))
        assert vae.dtype == (torch.bfloat16 if dtype else torch.float32)
    assert sizes[1] == 2 * sizes[0]
    assert difference(*images) <= MAX_BFLOAT16_DIFFERENCE
