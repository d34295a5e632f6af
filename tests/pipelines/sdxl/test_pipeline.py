"""The SDXL pipeline: text-to-image, progress, errors, loading."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import Cancelled, InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    batch_sizes,
    before_forward,
    difference,
    image_levels,
    levels,
    no_progress,
    raising,
)


def test_a_seed_determines_the_image(sdxl: SDXLPipeline) -> None:
    """A retried job must deliver the image that its first attempt would have delivered."""
    first, second = image_levels(sdxl, image_job()), image_levels(sdxl, image_job())
    assert difference(first, second) <= MAX_DIFFERENCE


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_an_image_equals_the_one_that_diffusers_generates(sdxl: SDXLPipeline, guidance_scale: float) -> None:
    """Checkpoints are made for diffusers; our own denoising loop must not sample differently."""
    noise = torch.randn((1, 4, 8, 16), generator=torch.Generator().manual_seed(7))
    expected = sdxl._pipe(
        prompt=image_job().prompt,
        latents=noise,
        width=128,
        height=64,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
    ).images
    job = image_job(width=128, steps=4, guidance_scale=guidance_scale)
    assert difference(image_levels(sdxl, job), levels(expected)) <= MAX_DIFFERENCE


def test_different_seeds_give_different_images(sdxl: SDXLPipeline) -> None:
    """Otherwise the six images of a batch would be one."""
    one, other = (image_levels(sdxl, image_job(seed=seed)) for seed in (1, 2))
    assert difference(one, other) > 50


@pytest.mark.parametrize("count", [3, 6])
def test_each_image_of_a_batch_equals_the_single_image_of_its_seed(sdxl: SDXLPipeline, count: int) -> None:
    """Callers pick one image of a batch and request it again by its seed."""
    batch = image_levels(sdxl, image_job(num_images=count, seed=100))
    singles = [image_levels(sdxl, image_job(seed=100 + k))[0] for k in range(count)]
    assert len(batch) == count
    assert difference(batch, np.stack(singles)) <= MAX_DIFFERENCE


def test_seeds_wrap_around_after_the_largest_one(sdxl: SDXLPipeline) -> None:
    """Every seed that is reported can be requested alone, and gives the same image."""
    batch = sdxl.generate(image_job(num_images=3, seed=2147483646), on_step=no_progress)
    assert batch.seeds == [2147483646, 2147483647, 0]
    single = image_levels(sdxl, image_job(seed=0))[0]
    assert difference(batch.images[2], single) <= MAX_DIFFERENCE


def test_a_scheduler_that_adds_noise_draws_it_from_each_image_s_seed(sdxl_checkpoint: Checkpoint) -> None:
    """Ancestral schedulers draw noise between steps; an image must not depend on the rest of its batch."""
    from diffusers import EulerAncestralDiscreteScheduler

    sdxl = SDXLPipeline(sdxl_checkpoint)
    sdxl.load()
    sdxl._pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(sdxl._pipe.scheduler.config)
    batch = image_levels(sdxl, image_job(num_images=3))
    assert difference(batch[2], image_levels(sdxl, image_job(seed=9))[0]) <= MAX_DIFFERENCE


def test_on_step_counts_the_unet_calls_of_a_second_order_scheduler(sdxl_checkpoint: Checkpoint) -> None:
    """Progress must never exceed 100 % because a scheduler calls the UNet twice per step."""
    from diffusers import HeunDiscreteScheduler

    sdxl = SDXLPipeline(sdxl_checkpoint)
    sdxl.load()
    sdxl._pipe.scheduler = HeunDiscreteScheduler.from_config(sdxl._pipe.scheduler.config)
    reported: list[tuple[int, int]] = []
    sdxl.generate(image_job(steps=3), on_step=lambda done, total: reported.append((done, total)))
    assert reported == [(done, 5) for done in range(6)]


def test_every_parameter_changes_the_image(sdxl: SDXLPipeline) -> None:
    """What the caller sends must reach the model."""
    default = image_levels(sdxl, image_job())
    for changes in (
        {"prompt": "a blue square"},
        {"negative_prompt": "clouds over hills"},
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"steps": 3},
    ):
        assert difference(default, image_levels(sdxl, image_job(**changes))) > MAX_DIFFERENCE, changes


def test_without_guidance_the_negative_prompt_is_not_used(sdxl: SDXLPipeline) -> None:
    """At a guidance scale of 1 or less the UNet runs once per step, on the prompt alone."""
    with batch_sizes(sdxl._pipe.unet) as sizes:
        plain = image_levels(sdxl, image_job(guidance_scale=1.0))
        negative = image_levels(sdxl, image_job(guidance_scale=1.0, negative_prompt="hills"))
        image_levels(sdxl, image_job(guidance_scale=2.0, num_images=3))
    assert difference(plain, negative) <= MAX_DIFFERENCE
    assert sizes == [1, 1, 1, 1, 6, 6]


def test_on_step_is_called_before_the_first_and_after_every_step(sdxl: SDXLPipeline) -> None:
    """The first call starts the deadline, the others report progress."""
    reported: list[tuple[int, int]] = []
    sdxl.generate(image_job(steps=3), on_step=lambda done, total: reported.append((done, total)))
    assert reported == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_cancelled_job_stops_before_the_next_step(sdxl: SDXLPipeline, stop_at: int) -> None:
    """Cancelling frees the GPU at once, and the pipeline stays usable."""
    expected = image_levels(sdxl, image_job())

    def on_step(done: int, total: int) -> None:
        if done == stop_at:
            raise Cancelled("enough")

    with batch_sizes(sdxl._pipe.unet) as sizes, pytest.raises(Cancelled):
        sdxl.generate(image_job(steps=5), on_step=on_step)
    assert len(sizes) == stop_at
    assert difference(expected, image_levels(sdxl, image_job())) <= MAX_DIFFERENCE


@pytest.mark.parametrize("reference", [None, Image.new("RGB", (64, 64), "green")])
def test_on_image_can_stop_the_job(sdxl: SDXLPipeline, reference: Image.Image | None) -> None:
    """A batch that is cancelled while its first images are stored is not decoded to the end, and is not
    reported as a failed reference."""

    def on_image(index: int, _: Image.Image) -> None:
        raise Cancelled(f"enough at {index}")

    fields = {} if reference is None else {"reference": "u/p.png", "denoise_strength": 0.9}
    job = image_job(num_images=6, **fields)
    with batch_sizes(sdxl._pipe.vae.decoder) as decoded, pytest.raises(Cancelled, match="at 0"):
        sdxl.generate(job, reference=reference, on_step=no_progress, on_image=on_image)
    assert len(decoded) == 1
    assert len(image_levels(sdxl, image_job())) == 1


@pytest.mark.parametrize(
    ("requested", "rendered", "is_capped"),
    [
        ((64, 64), (64, 64), False),
        ((128, 64), (128, 64), False),
        ((64, 104), (64, 104), False),
        ((1024, 576), (128, 72), True),
        ((2048, 64), (128, 16), True),
    ],
)
def test_the_size_cap_keeps_the_aspect_ratio(
    sdxl: SDXLPipeline, requested: tuple[int, int], rendered: tuple[int, int], is_capped: bool
) -> None:
    """The tiny profile renders a production request small and reports that."""
    result = sdxl.generate(image_job(width=requested[0], height=requested[1]), on_step=no_progress)
    assert result.images[0].size == rendered
    assert result.images[0].mode == "RGB"
    assert result.metadata["size_capped"] is is_capped


def test_without_a_cap_the_size_is_the_requested_one(sdxl_checkpoint: Checkpoint) -> None:
    """In production an explicit size is rendered exactly."""
    result = SDXLPipeline(sdxl_checkpoint).generate(image_job(width=200, height=136), on_step=no_progress)
    assert result.images[0].size == (200, 136)
    assert result.metadata["size_capped"] is False


@pytest.mark.parametrize("field", ["width", "height"])
def test_a_size_that_is_no_multiple_of_8_is_refused(sdxl: SDXLPipeline, field: str) -> None:
    """Rounding it silently would deliver an image that nobody requested."""
    with pytest.raises(InvalidParameters, match="not a multiple of 8") as refused:
        sdxl.generate(image_job(**{field: 100}), on_step=no_progress)
    assert (refused.value.field, refused.value.value) == (field, 100)


def test_the_result_has_the_metadata_of_the_callback(sdxl: SDXLPipeline) -> None:
    """Callbacks are built from these fields."""
    result = sdxl.generate(image_job(num_images=3, steps=2), on_step=no_progress)
    assert result.seeds == [7, 8, 9]
    assert 0 < result.seconds < 30
    assert result.metadata.pop("receipt")["results"]
    assert result.metadata == {
        "size_capped": False,
        "final_prompt_type": "string",
        "compel_success": False,
        "enhancement_strategy": "none",
        "embedding_cache": {"hits": 0, "misses": 1},
    }
    assert result.asset_metadata == {"steps": 2, "effective_steps": 2, "guidance_scale": 6.0}
    assert result.batch_size == 3


def test_prompt_weights_change_the_image_and_the_metadata(sdxl: SDXLPipeline) -> None:
    """A caller who sends prompt weights sees their effect and is told that they were applied."""
    job = image_job(compel_enabled=True, compel_weights="(bright:1.3)")
    weighted = sdxl.generate(job, on_step=no_progress)
    expected = {
        "enhancement_strategy": "compel",
        "compel_success": True,
        "final_prompt_type": "conditioning_tensor",
    }
    assert {name: weighted.metadata[name] for name in expected} == expected
    assert "compel_reason" not in weighted.metadata
    assert difference(image_levels(sdxl, image_job()), levels(weighted.images)) > MAX_DIFFERENCE


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("component", ["unet", "vae.decoder", "text_encoder"])
def test_every_out_of_memory_error_becomes_ours(sdxl: SDXLPipeline, component: str, error: Exception) -> None:
    """Wherever it happens, it becomes one retryable code, and the next job runs."""
    model, _, inner = component.partition(".")
    with (
        raising(getattr(sdxl._pipe, model).get_submodule(inner), error),
        pytest.raises(OutOfMemory, match="Not enough memory for 1 of 64x64") as raised,
    ):
        sdxl.generate(image_job(), on_step=no_progress)
    assert raised.value.__context__ is None, "the first error's traceback would keep its tensors alive"
    assert len(image_levels(sdxl, image_job())) == 1


def test_each_fallback_starts_without_the_tensors_of_the_last_one(sdxl: SDXLPipeline) -> None:
    """It needs their memory, also while the first error is still being reported."""
    tensors: list[weakref.ref[torch.Tensor]] = []

    def fail(tensor: torch.Tensor) -> None:
        assert all(earlier() is None for earlier in tensors), "tensors of an earlier attempt are alive"
        tensors.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with before_forward(sdxl._pipe.unet, fail), pytest.raises(OutOfMemory) as raised:
        sdxl.generate(image_job(), on_step=no_progress)
    assert raised.value.retryable
    assert [tensor() for tensor in tensors] == [None] * len(tensors)


def test_a_real_allocation_failure_is_out_of_memory(sdxl: SDXLPipeline) -> None:
    """The present message of the CPU allocator must be recognised, not only those in our list."""
    allocate = before_forward(sdxl._pipe.unet, lambda _: torch.empty(1 << 60, dtype=torch.uint8))
    with allocate, pytest.raises(OutOfMemory):
        sdxl.generate(image_job(), on_step=no_progress)


def test_other_errors_of_the_model_are_raised_unchanged(sdxl: SDXLPipeline) -> None:
    """Treating every failure as a lack of memory would retry what cannot succeed."""
    error = RuntimeError("shapes do not match")
    with raising(sdxl._pipe.unet, error), pytest.raises(RuntimeError, match="shapes do not match"):
        sdxl.generate(image_job(), on_step=no_progress)


def test_unloading_frees_the_weights(sdxl_checkpoint: Checkpoint) -> None:
    """Another process on the GPU waits for this memory."""
    sdxl = SDXLPipeline(sdxl_checkpoint)
    sdxl.load()
    sdxl.generate(image_job(), on_step=no_progress)
    unet = weakref.ref(sdxl._pipe.unet)
    assert sdxl.info()["loaded"] is True
    sdxl.unload()
    sdxl.unload()
    assert unet() is None
    assert sdxl.info()["loaded"] is False
    assert sdxl.info()["memory_mib"] == 0


def test_loading_is_idempotent(sdxl: SDXLPipeline) -> None:
    """A worker reads its checkpoint once."""
    loaded = sdxl._pipe
    sdxl.load()
    assert sdxl._pipe is loaded


def test_info_describes_the_checkpoint_and_where_it_is_loaded(sdxl: SDXLPipeline) -> None:
    """`/model/info` and `doctor` show it."""
    info = sdxl.info()
    assert (info["name"], info["kind"], info["native_size"]) == (sdxl.checkpoint.name, "tiny", 64)
    assert info["device"] in ("cpu", "cuda")
    assert info["memory_mib"] > 0
    assert info["load_seconds"] > 0


def test_an_unreadable_checkpoint_is_a_load_error(sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The message names the folder and the reason."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_bytes((sdxl_checkpoint.path / "model_index.json").read_bytes())
    with pytest.raises(ModelLoadError, match="broken could not be loaded"):
        SDXLPipeline(Checkpoint(broken, "folder")).load()


def test_pickled_weights_are_never_loaded(sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A pickle can run any code."""
    from shutil import copytree

    import safetensors.torch

    pickled = copytree(sdxl_checkpoint.path, tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelLoadError):
        SDXLPipeline(Checkpoint(pickled, "folder")).load()
