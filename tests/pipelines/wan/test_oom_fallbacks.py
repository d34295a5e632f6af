"""Wan jobs when memory runs out, and VAE tiling."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ourvidz.errors import OutOfMemory
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor, tiling
from tests.factories import video_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    batch_sizes,
    clip_levels,
    difference,
    first_passes,
    levels,
    longest_edges,
    no_progress,
    out_of_memory,
)


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae.decoder"])
@pytest.mark.parametrize(("failures", "name"), [(0, None), (1, "freed"), (2, "tiled")])
def test_every_fallback_generates_the_same_clip(
    wan: WanPipeline, component: str, failures: int, name: str | None
) -> None:
    """The callback names the fallback. A clip of the size of one tile has no seams."""
    expected = clip_levels(wan, video_job())
    model, _, inner = component.partition(".")
    module = getattr(wan.components.pipe, model).get_submodule(inner)
    if component == "text_encoder":
        module = module.encoder.block[0]  # the encoder itself takes keyword arguments only
    with out_of_memory(module, first_passes(failures)):
        result = wan.generate(video_job(), on_step=no_progress)
    assert result.metadata.get("memory_rung") == name
    assert result.batch_size == 1
    assert difference(levels(result.frames), expected) <= MAX_DIFFERENCE


def test_finished_latents_are_not_denoised_again(wan: WanPipeline) -> None:
    """Denoising takes minutes; the VAE runs last, and its failure must not repeat them."""
    pipe = wan.components.pipe
    with batch_sizes(pipe.transformer) as sizes, out_of_memory(pipe.vae.decoder, first_passes(2)):
        result = wan.generate(video_job(steps=3, guidance_scale=1.0), on_step=no_progress)
    assert result.metadata["memory_rung"] == "tiled"
    assert len(sizes) == 3


def test_a_job_that_never_fits_fails_with_out_of_memory(wan: WanPipeline) -> None:
    """A smaller or shorter clip is not an acceptable result. The next job starts without a fallback."""
    with (
        out_of_memory(wan.components.pipe.transformer, lambda _: True) as attempts,
        pytest.raises(OutOfMemory, match="5 frames of 32x32"),
    ):
        wan.generate(video_job(), on_step=no_progress)
    assert len(attempts) == 3
    assert "memory_rung" not in wan.generate(video_job(), on_step=no_progress).metadata


def test_tiling_applies_to_encoder_and_decoder_and_is_switched_off_for_the_next_job(
    wan: WanPipeline,
) -> None:
    """Tiles take time and blend seams."""
    job = video_job(width=64, height=64, reference_mode="start")
    references = ReferenceImages(start=Image.new("RGB", (64, 64), "olive"))
    vae = wan.components.pipe.vae
    with (
        longest_edges(vae.encoder) as encoded,
        longest_edges(vae.decoder) as decoded,
        out_of_memory(wan.components.pipe.transformer, first_passes(2)),
    ):
        result = wan.generate(job, references=references, on_step=no_progress)
    assert result.metadata["memory_rung"] == "tiled"
    # Not tiled in the two attempts that failed in the transformer.
    assert (encoded[:2], max(encoded[2:]), max(decoded)) == ([64, 64], 32, 4)
    assert {frame.size for frame in result.frames} == {(64, 64)}
    with longest_edges(vae.decoder) as decoded:
        wan.generate(job, references=references, on_step=no_progress)
    assert set(decoded) == {8}


def test_tiling_can_be_always_on(wan_checkpoint: Checkpoint) -> None:
    """If the VAE is known not to fit, the first attempts would be wasted."""
    wan = WanPipeline(wan_checkpoint, options=WanOptions(tiled=True, previews=False))
    wan.load()
    with longest_edges(wan.components.pipe.vae.decoder) as decoded:
        result = wan.generate(video_job(width=64, height=64), on_step=no_progress)
    assert max(decoded) == 4
    assert "memory_rung" not in result.metadata


def test_tiles_are_close_to_the_whole() -> None:
    """On the trained checkpoint: at least 27 dB, with the blended seams."""
    wan = WanPipeline(find_wan(None), options=WanOptions(previews=False))
    wan.load()
    vae = VideoVAE(wan.components.pipe.vae)
    image = image_tensor(Image.linear_gradient("L").resize((96, 64)), 96, 64)
    with torch.no_grad():
        latents = vae.encode(image, frames=5)
        frames = vae.decode(latents)
        with tiling(wan.components.pipe.vae, True, (96, 64)):
            tiled_frames = vae.decode(latents)
            tiled_latents = vae.encode(image, frames=5)
    assert (tiled_frames.shape, tiled_latents.shape) == (frames.shape, latents.shape)
    assert (tiled_frames - frames).square().mean() < 4 * 10**-2.7
    assert (tiled_latents - latents).abs().mean() < 0.1 * latents.std()


def test_the_tile_size_is_restored_after_a_job_that_failed(wan: WanPipeline) -> None:
    """Tiles that shrink with every job would leave seams everywhere."""
    vae = wan.components.pipe.vae
    previous = (vae.tile_sample_min_width, vae.tile_sample_stride_height)
    with out_of_memory(vae.decoder, lambda _: True), pytest.raises(OutOfMemory):
        wan.generate(video_job(), on_step=no_progress)
    assert (vae.tile_sample_min_width, vae.tile_sample_stride_height) == previous
    assert not vae.use_tiling


def test_a_memory_error_of_on_step_is_raised_unchanged(wan: WanPipeline) -> None:
    """It stops the job and starts no fallback."""
    reported: list[int] = []

    def on_step(done: int, _: int) -> None:
        reported.append(done)
        raise MemoryError

    with pytest.raises(MemoryError):
        wan.generate(video_job(), on_step=on_step)
    assert reported == [0]
