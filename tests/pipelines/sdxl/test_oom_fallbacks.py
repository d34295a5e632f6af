from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.oom_fallbacks import oom_fallbacks
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline

MakeJob = Callable[..., ImageJob]
LEVELS = 2
"""How far the 8-bit levels of two equal pictures may lie apart: batches round differently."""


def made(sdxl: SDXLPipeline, job: ImageJob) -> GeneratedImages:
    return sdxl.generate(job, on_step=lambda *_: None)


def same(one: GeneratedImages, other: GeneratedImages) -> bool:
    pairs = zip(one.images, other.images, strict=True)
    return all(
        np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= LEVELS for a, b in pairs
    )


@contextmanager
def failing(module: torch.nn.Module, fails: Callable[[torch.Tensor], bool]) -> Iterator[list[int]]:
    """Memory runs out in `module` whenever `fails` says so of its input; yields the input's batch sizes."""
    rows: list[int] = []

    def hook(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        rows.append(len(inputs[0]))
        if fails(inputs[0]):
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = module.register_forward_pre_hook(hook)
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def sides(module: torch.nn.Module) -> Iterator[list[int]]:
    """The longer side of everything that `module` is given."""
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(max(inputs[0].shape[-2:])))
    try:
        yield seen
    finally:
        handle.remove()


def times(count: int) -> Callable[[torch.Tensor], bool]:
    """Fails `count` times and then no more."""
    left = iter([True] * count)
    return lambda _: next(left, False)


def test_the_ladder_ends_with_single_pictures() -> None:
    """What does not fit one by one does not fit."""
    assert [rung.batch_size for rung in oom_fallbacks(6)] == [6, 6, 6, 3, 2, 1]
    assert [rung.name for rung in oom_fallbacks(3)] == ["whole", "freed", "tiled", "parts", "parts"]
    assert [rung.vae_tiling for rung in oom_fallbacks(1)] == [False, False, True]


def test_only_small_pictures_are_decoded_in_pairs_and_only_while_memory_suffices() -> None:
    """The VAE takes more memory a picture than the UNet: a batch that fits there need not fit here."""
    assert [rung.decode_batch_size(128 * 128) for rung in oom_fallbacks(6)] == [2, 1, 1, 1, 1, 1]
    assert [rung.decode_batch_size(1024 * 1024) for rung in oom_fallbacks(6)] == [1] * 6


def test_a_finished_picture_is_handed_on_once(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Also where memory runs out between two of them: storing starts while the others are being made."""
    handed: list[tuple[int, Image.Image]] = []
    job = image_job(num_images=6, width=32, height=32)
    expected = made(sdxl, job)
    calls = iter([False, True])
    with failing(sdxl._pipe.vae.decoder, lambda _: next(calls, False)) as rows:
        found = sdxl.generate(job, on_step=lambda *_: None, on_image=lambda *one: handed.append(one))
    assert rows == [2, 2, 1, 1, 1, 1]
    assert found.metadata["memory_rung"] == "freed"
    assert [index for index, _ in handed] == [0, 1, 2, 3, 4, 5]
    assert all(one is other for (_, one), other in zip(handed, found.images, strict=True))
    assert same(found, expected)


@pytest.mark.parametrize(("failures", "rung"), [(0, None), (1, "freed"), (2, "tiled"), (3, "parts")])
def test_every_rung_delivers_the_same_pictures(
    sdxl: SDXLPipeline, image_job: MakeJob, failures: int, rung: str | None
) -> None:
    """A caller gets what was ordered, however hard it was to make, and the callback tells how hard. Pictures
    of the size of one tile have no seams."""
    job = image_job(num_images=3, width=32, height=32)
    expected = made(sdxl, job)
    with failing(sdxl._pipe.unet, times(failures)):
        found = made(sdxl, job)
    assert found.metadata.get("memory_rung") == rung
    assert found.seeds == expected.seeds
    assert same(found, expected)


def test_a_batch_that_is_too_large_is_made_in_parts_that_fit(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Six pictures come from a GPU that has room for two: guidance doubles the rows."""
    job = image_job(num_images=6, steps=1, width=32, height=32)
    expected = made(sdxl, job)
    with failing(sdxl._pipe.unet, lambda latents: len(latents) > 4) as rows:
        found = made(sdxl, job)
    assert rows == [12, 12, 12, 6, 4, 4, 4]
    assert same(found, expected)
    assert (expected.batch_size, found.batch_size) == (6, 2)
    assert found.metadata["batch_size"] == found.asset_metadata["batch_size"] == 2


def test_batch_size_is_the_largest_batch_that_was_denoised(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """When memory runs out between batches, the rest runs in smaller ones; when only the VAE runs out of it,
    the images were still denoised together."""
    job = image_job(num_images=3, steps=1, width=32, height=32)
    calls = iter([True, True, True, False, True])
    with failing(sdxl._pipe.unet, lambda _: next(calls, False)) as rows:
        found = made(sdxl, job)
    assert (rows, found.batch_size) == ([6, 6, 6, 4, 2, 2], 2)
    with failing(sdxl._pipe.vae.decoder, times(3)):
        found = made(sdxl, job)
    assert (found.metadata["memory_rung"], found.batch_size) == ("parts", 3)


def test_what_is_denoised_is_not_denoised_again_for_the_vae(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """The VAE needs the most memory and comes last: its failure must not cost the steps before it."""
    ran: list[int] = []
    handle = sdxl._pipe.unet.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with failing(sdxl._pipe.vae.decoder, times(2)):
            found = made(sdxl, image_job(steps=3))
    finally:
        handle.remove()
    assert found.metadata["memory_rung"] == "tiled"
    assert len(ran) == 3


def test_the_vae_works_in_tiles_only_while_it_has_to(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Tiles cost time and blend seams: the next job gets the whole VAE again."""
    with sides(sdxl._pipe.vae.decoder) as seen:
        with failing(sdxl._pipe.unet, times(2)):
            made(sdxl, image_job())
        assert len(seen) > 1
        seen.clear()
        made(sdxl, image_job())
    assert seen == [8]


def test_a_picture_of_the_native_size_is_made_in_smaller_tiles(
    sdxl: SDXLPipeline, image_job: MakeJob
) -> None:
    """Tiles as large as the picture would take as much memory as the picture."""
    assert sdxl.info()["native_size"] == sdxl._pipe.vae.config.sample_size == 64
    job = image_job(reference="u/p.png", denoise_strength=0.5)
    vae = sdxl._pipe.vae
    with sides(vae.encoder) as encoded, sides(vae.decoder) as decoded, failing(sdxl._pipe.unet, times(2)):
        found = sdxl.generate(job, reference=Image.new("RGB", (64, 64), "green"), on_step=lambda *_: None)
    assert found.metadata["memory_rung"] == "tiled"
    assert found.images[0].size == (64, 64)
    # Whole on the two rungs that failed in the UNet.
    assert encoded[:2] == [64, 64]
    assert max(encoded[2:]) == 32
    assert max(decoded) == 4


def test_the_vae_is_whole_again_after_a_job_that_failed_in_tiles(
    sdxl: SDXLPipeline, image_job: MakeJob
) -> None:
    """Tiles that went on shrinking would end in seams everywhere."""
    for _ in range(2):
        with failing(sdxl._pipe.vae.decoder, lambda _: True), pytest.raises(OutOfMemory):
            made(sdxl, image_job())
    vae = sdxl._pipe.vae
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (64, 8)


def test_memory_that_never_suffices_is_an_error_of_ours(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """A silently smaller picture is no answer."""
    with failing(sdxl._pipe.unet, lambda _: True) as rows, pytest.raises(OutOfMemory):
        made(sdxl, image_job(num_images=3))
    assert rows == [6, 6, 6, 4, 2]
    assert "memory_rung" not in made(sdxl, image_job()).metadata


def test_the_parts_of_a_job_count_as_one(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Progress of three batches of two steps goes to six."""
    heard: list[tuple[int, int]] = []
    with failing(sdxl._pipe.unet, lambda latents: len(latents) > 2):
        sdxl.generate(image_job(num_images=3), on_step=lambda done, total: heard.append((done, total)))
    assert heard[-9:] == [(0, 6), (1, 6), (2, 6), (2, 6), (3, 6), (4, 6), (4, 6), (5, 6), (6, 6)]
