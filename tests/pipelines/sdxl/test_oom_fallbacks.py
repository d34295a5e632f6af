"""SDXL jobs when memory runs out: which fallbacks are tried, and that the images stay the same."""

from __future__ import annotations

import pytest
from PIL import Image

from ourvidz.errors import OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines import devices
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.oom_fallbacks import oom_fallbacks
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    batch_sizes,
    difference,
    first_passes,
    levels,
    longest_edges,
    no_progress,
    out_of_memory,
    passes,
)


def generate(sdxl: SDXLPipeline, job: ImageJob) -> GeneratedImages:
    return sdxl.generate(job, on_step=no_progress)


def are_equal(one: GeneratedImages, other: GeneratedImages) -> bool:
    return difference(levels(one.images), levels(other.images)) <= MAX_DIFFERENCE


def test_the_last_fallback_generates_images_one_by_one() -> None:
    """An image that does not fit alone does not fit at all."""
    assert [fallback.batch_size for fallback in oom_fallbacks(6)] == [6, 6, 6, 3, 2, 1]
    assert [fallback.name for fallback in oom_fallbacks(3)] == ["whole", "freed", "tiled", "parts", "parts"]
    assert [fallback.vae_tiling for fallback in oom_fallbacks(1)] == [False, False, True]


@pytest.mark.parametrize(("free", "rung"), [(None, None), (1 << 40, None), (1 << 20, "tiled")])
def test_an_image_is_decoded_in_tiles_where_too_little_memory_is_free(
    sdxl: SDXLPipeline, monkeypatch: pytest.MonkeyPatch, free: int | None, rung: str | None
) -> None:
    """Otherwise the attempt takes what the workers beside it need, and fails. None is a CPU."""
    monkeypatch.setattr(devices, "free_bytes", lambda device: free)
    with longest_edges(sdxl._pipe.vae.decoder) as edges:
        result = generate(sdxl, image_job(width=128, height=128))
    assert result.metadata.get("memory_rung") == rung
    assert (max(edges) < 16) == (rung == "tiled")


def test_the_memory_to_decode_is_that_of_the_largest_level(sdxl: SDXLPipeline) -> None:
    """By the channels and the dtype of the VAE: 3 GiB for SDXL at 1024x1024 px in float32."""
    vae = sdxl._model.vae
    assert vae.decode_bytes((64, 64)) == 3 * 16 * 64 * 64 * 4
    assert 3 * 256 * 1024 * 1024 * 4 == 3 << 30


def test_only_small_images_are_decoded_in_pairs_and_only_without_a_fallback() -> None:
    """The VAE needs more memory per image than the UNet: a batch that fits the UNet need not fit the VAE."""
    assert [fallback.decode_batch_size(128 * 128) for fallback in oom_fallbacks(6)] == [2, 1, 1, 1, 1, 1]
    assert [fallback.decode_batch_size(1024 * 1024) for fallback in oom_fallbacks(6)] == [1] * 6


def test_a_finished_image_is_reported_once(sdxl: SDXLPipeline) -> None:
    """Also if memory runs out between two images: the first ones are stored while the others are decoded."""
    reported: list[tuple[int, Image.Image]] = []
    job = image_job(num_images=6, width=32, height=32)
    expected = generate(sdxl, job)
    with out_of_memory(sdxl._pipe.vae.decoder, passes(2)) as sizes:
        result = sdxl.generate(job, on_step=no_progress, on_image=lambda *image: reported.append(image))
    assert sizes == [2, 2, 1, 1, 1, 1]
    assert result.metadata["memory_rung"] == "freed"
    assert [index for index, _ in reported] == [0, 1, 2, 3, 4, 5]
    assert all(one is other for (_, one), other in zip(reported, result.images, strict=True))
    assert are_equal(result, expected)


@pytest.mark.parametrize(("failures", "name"), [(0, None), (1, "freed"), (2, "tiled"), (3, "parts")])
def test_every_fallback_generates_the_same_images(
    sdxl: SDXLPipeline, failures: int, name: str | None
) -> None:
    """The callback names the fallback. Images of the size of one tile have no seams."""
    job = image_job(num_images=3, width=32, height=32)
    expected = generate(sdxl, job)
    with out_of_memory(sdxl._pipe.unet, first_passes(failures)):
        result = generate(sdxl, job)
    assert result.metadata.get("memory_rung") == name
    assert result.seeds == expected.seeds
    assert are_equal(result, expected)


def test_a_batch_that_is_too_large_is_split_and_batch_size_reports_it(sdxl: SDXLPipeline) -> None:
    """A GPU with memory for two images generates six. Guidance doubles the UNet's batch size, which does not
    count."""
    job = image_job(num_images=6, steps=1, width=32, height=32)
    expected = generate(sdxl, job)
    with out_of_memory(sdxl._pipe.unet, lambda latents: len(latents) > 4) as sizes:
        result = generate(sdxl, job)
    assert sizes == [12, 12, 12, 6, 4, 4, 4]
    assert are_equal(result, expected)
    assert (expected.batch_size, result.batch_size) == (6, 2)


def test_batch_size_is_the_largest_batch_that_was_denoised(sdxl: SDXLPipeline) -> None:
    """If memory runs out between batches, the rest runs in smaller ones; if only the VAE runs out of it, the
    images were still denoised together."""
    job = image_job(num_images=3, steps=1, width=32, height=32)
    with out_of_memory(sdxl._pipe.unet, passes(1, 2, 3, 5)) as sizes:
        result = generate(sdxl, job)
    assert (sizes, result.batch_size) == ([6, 6, 6, 4, 2, 2], 2)
    with out_of_memory(sdxl._pipe.vae.decoder, first_passes(3)):
        result = generate(sdxl, job)
    assert (result.metadata["memory_rung"], result.batch_size) == ("parts", 3)


def test_finished_latents_are_not_denoised_again(sdxl: SDXLPipeline) -> None:
    """The VAE needs the most memory and runs last: its failure must not cost the denoising steps."""
    with batch_sizes(sdxl._pipe.unet) as sizes, out_of_memory(sdxl._pipe.vae.decoder, first_passes(2)):
        result = generate(sdxl, image_job(steps=3))
    assert result.metadata["memory_rung"] == "tiled"
    assert len(sizes) == 3


def test_tiling_is_switched_off_for_the_next_job(sdxl: SDXLPipeline) -> None:
    """Tiles take time and blend seams."""
    with longest_edges(sdxl._pipe.vae.decoder) as edges:
        with out_of_memory(sdxl._pipe.unet, first_passes(2)):
            generate(sdxl, image_job())
        assert len(edges) > 1
        edges.clear()
        generate(sdxl, image_job())
    assert edges == [8]


def test_an_image_of_the_native_size_is_processed_in_smaller_tiles(sdxl: SDXLPipeline) -> None:
    """Tiles as large as the image would need as much memory as the image."""
    assert sdxl.info()["native_size"] == sdxl._pipe.vae.config.sample_size == 64
    job = image_job(reference="u/p.png", denoise_strength=0.5)
    vae = sdxl._pipe.vae
    with (
        longest_edges(vae.encoder) as encoded,
        longest_edges(vae.decoder) as decoded,
        out_of_memory(sdxl._pipe.unet, first_passes(2)),
    ):
        result = sdxl.generate(job, reference=Image.new("RGB", (64, 64), "green"), on_step=no_progress)
    assert result.metadata["memory_rung"] == "tiled"
    assert result.images[0].size == (64, 64)
    # Not tiled in the two attempts that failed in the UNet.
    assert encoded[:2] == [64, 64]
    assert max(encoded[2:]) == 32
    assert max(decoded) == 4


def test_the_tile_size_is_restored_after_a_job_that_failed(sdxl: SDXLPipeline) -> None:
    """Tiles that shrink with every job would leave seams everywhere."""
    for _ in range(2):
        with out_of_memory(sdxl._pipe.vae.decoder, lambda _: True), pytest.raises(OutOfMemory):
            generate(sdxl, image_job())
    vae = sdxl._pipe.vae
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (64, 8)


def test_a_job_that_never_fits_fails_with_out_of_memory(sdxl: SDXLPipeline) -> None:
    """A smaller image is not an acceptable result. The next job starts without a fallback."""
    with out_of_memory(sdxl._pipe.unet, lambda _: True) as sizes, pytest.raises(OutOfMemory):
        generate(sdxl, image_job(num_images=3))
    assert sizes == [6, 6, 6, 4, 2]
    assert "memory_rung" not in generate(sdxl, image_job()).metadata


def test_progress_counts_the_steps_of_all_batches(sdxl: SDXLPipeline) -> None:
    """Three batches of two steps are six steps."""
    reported: list[tuple[int, int]] = []
    with out_of_memory(sdxl._pipe.unet, lambda latents: len(latents) > 2):
        sdxl.generate(image_job(num_images=3), on_step=lambda done, total: reported.append((done, total)))
    assert reported[-9:] == [(0, 6), (1, 6), (2, 6), (2, 6), (3, 6), (4, 6), (4, 6), (5, 6), (6, 6)]
