from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import Cancelled, InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline

MakeJob = Callable[..., ImageJob]

LEVELS = 2
"""How far the 8-bit levels of two equal pictures may lie apart: batches round differently."""


def pictures(sdxl: SDXLPipeline, job: ImageJob) -> list[np.ndarray]:
    made = sdxl.generate(job, on_step=lambda done, total: None)
    return [np.asarray(image).astype(int) for image in made.images]


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_a_seed_means_one_picture(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """A retried job must deliver the picture that its first attempt would have."""
    first, again = pictures(sdxl, image_job())[0], pictures(sdxl, image_job())[0]
    assert far(first, again) <= LEVELS


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_a_plain_picture_is_the_one_that_diffusers_makes(
    sdxl: SDXLPipeline, image_job: MakeJob, guidance: float
) -> None:
    """A checkpoint's authors have tried it there; our own loop must not be another way to sample."""
    noise = torch.randn((1, 4, 8, 16), generator=torch.Generator().manual_seed(7))
    theirs = sdxl._pipe(
        prompt=image_job().prompt,
        latents=noise,
        width=128,
        height=64,
        num_inference_steps=4,
        guidance_scale=guidance,
    ).images[0]
    ours = pictures(sdxl, image_job(width=128, steps=4, guidance_scale=guidance))[0]
    assert far(ours, np.asarray(theirs).astype(int)) <= LEVELS


def test_another_seed_means_another_picture(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Otherwise the six pictures of a batch would be one."""
    assert far(pictures(sdxl, image_job(seed=1))[0], pictures(sdxl, image_job(seed=2))[0]) > 50


@pytest.mark.parametrize("count", [3, 6])
def test_a_batch_is_its_single_pictures(sdxl: SDXLPipeline, image_job: MakeJob, count: int) -> None:
    """Callers pick one picture of a batch and ask for it again by its seed."""
    batch = pictures(sdxl, image_job(num_images=count, seed=100))
    singles = [pictures(sdxl, image_job(seed=100 + k))[0] for k in range(count)]
    assert len(batch) == count
    assert all(far(one, other) <= LEVELS for one, other in zip(batch, singles, strict=True))


def test_the_seeds_after_the_last_one_begin_again(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Every seed that is reported can be asked for alone, and is the same picture then."""
    batch = sdxl.generate(image_job(num_images=3, seed=2147483646), on_step=lambda *_: None)
    assert batch.seeds == [2147483646, 2147483647, 0]
    alone = pictures(sdxl, image_job(seed=0))[0]
    assert far(np.asarray(batch.images[2]).astype(int), alone) <= LEVELS


def test_a_batch_is_its_single_pictures_with_a_scheduler_that_adds_noise(
    tiny: Checkpoint, image_job: MakeJob
) -> None:
    """Ancestral schedulers draw between the steps; those draws must follow each picture's seed as well."""
    from diffusers import EulerAncestralDiscreteScheduler

    sdxl = SDXLPipeline(tiny)
    sdxl.load()
    sdxl._pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(sdxl._pipe.scheduler.config)
    batch = pictures(sdxl, image_job(num_images=3))
    assert far(batch[2], pictures(sdxl, image_job(seed=9))[0]) <= LEVELS


def test_on_step_counts_every_step_of_a_second_order_scheduler(tiny: Checkpoint, image_job: MakeJob) -> None:
    """Progress must never pass 100 % because a scheduler looks twice at each step."""
    from diffusers import HeunDiscreteScheduler

    sdxl = SDXLPipeline(tiny)
    sdxl.load()
    sdxl._pipe.scheduler = HeunDiscreteScheduler.from_config(sdxl._pipe.scheduler.config)
    heard: list[tuple[int, int]] = []
    sdxl.generate(image_job(steps=3), on_step=lambda done, total: heard.append((done, total)))
    assert heard == [(done, 5) for done in range(6)]


def test_the_prompt_the_negative_prompt_and_guidance_each_change_the_picture(
    sdxl: SDXLPipeline, image_job: MakeJob
) -> None:
    """What the caller sends must reach the model."""
    plain = pictures(sdxl, image_job())[0]
    for changed in (
        {"prompt": "a blue square"},
        {"negative_prompt": "clouds over hills"},
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"steps": 3},
    ):
        assert far(plain, pictures(sdxl, image_job(**changed))[0]) > LEVELS, changed


def test_the_negative_prompt_is_idle_without_guidance(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Guidance of 1 or less runs the UNet once a step, on the prompt alone."""
    rows: list[int] = []
    hook = sdxl._pipe.unet.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    try:
        plain = pictures(sdxl, image_job(guidance_scale=1.0))[0]
        negative = pictures(sdxl, image_job(guidance_scale=1.0, negative_prompt="hills"))[0]
        pictures(sdxl, image_job(guidance_scale=2.0, num_images=3))
    finally:
        hook.remove()
    assert far(plain, negative) <= LEVELS
    assert rows == [1, 1, 1, 1, 6, 6]


def test_on_step_hears_every_step_before_and_after(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """The deadline starts with the first call and progress comes from the others."""
    heard: list[tuple[int, int]] = []
    sdxl.generate(image_job(steps=3), on_step=lambda done, total: heard.append((done, total)))
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_cancelled_job_stops_before_the_next_step(
    sdxl: SDXLPipeline, image_job: MakeJob, stop_at: int
) -> None:
    """Cancelling frees the GPU at once, and the next job finds the pipeline in order."""
    expected = pictures(sdxl, image_job())[0]
    ran: list[int] = []

    def on_step(done: int, total: int) -> None:
        if done == stop_at:
            raise Cancelled("enough")

    hook = sdxl._pipe.unet.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(Cancelled):
            sdxl.generate(image_job(steps=5), on_step=on_step)
    finally:
        hook.remove()
    assert len(ran) == stop_at
    assert far(expected, pictures(sdxl, image_job())[0]) <= LEVELS


@pytest.mark.parametrize("reference", [None, Image.new("RGB", (64, 64), "green")])
def test_whoever_is_handed_a_picture_can_stop_the_rest(
    sdxl: SDXLPipeline, image_job: MakeJob, reference: Image.Image | None
) -> None:
    """A batch that was cancelled while its first pictures were stored is not decoded to the end, and never
    looks like a failed reference."""
    decoded: list[int] = []

    def stop(index: int, _: Image.Image) -> None:
        raise Cancelled(f"enough at {index}")

    named = {} if reference is None else {"reference": "u/p.png", "denoise_strength": 0.9}
    hook = sdxl._pipe.vae.decoder.register_forward_pre_hook(lambda *_: decoded.append(1))
    try:
        with pytest.raises(Cancelled, match="at 0"):
            sdxl.generate(
                image_job(num_images=6, **named),
                reference=reference,
                on_step=lambda *_: None,
                on_image=stop,
            )
    finally:
        hook.remove()
    assert len(decoded) == 1
    assert pictures(sdxl, image_job())


@pytest.mark.parametrize(
    ("asked", "made", "is_capped"),
    [
        ((64, 64), (64, 64), False),
        ((128, 64), (128, 64), False),
        ((64, 104), (64, 104), False),
        ((1024, 576), (128, 72), True),
        ((2048, 64), (128, 16), True),
    ],
)
def test_the_tiny_profile_renders_at_most_its_cap(
    sdxl: SDXLPipeline,
    image_job: MakeJob,
    asked: tuple[int, int],
    made: tuple[int, int],
    is_capped: bool,
) -> None:
    """A laptop renders a production request small, keeps its aspect and says so."""
    result = sdxl.generate(image_job(width=asked[0], height=asked[1]), on_step=lambda *_: None)
    assert result.images[0].size == made
    assert result.images[0].mode == "RGB"
    assert result.metadata["size_capped"] is is_capped


def test_without_a_cap_the_size_is_as_asked(tiny: Checkpoint, image_job: MakeJob) -> None:
    """In production an explicit size is honoured exactly."""
    result = SDXLPipeline(tiny).generate(image_job(width=200, height=136), on_step=lambda *_: None)
    assert result.images[0].size == (200, 136)
    assert result.metadata["size_capped"] is False


def test_a_size_the_vae_cannot_make_is_refused(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Rounding it silently would deliver a picture nobody asked for."""
    with pytest.raises(InvalidParameters, match="100x64"):
        sdxl.generate(image_job(width=100), on_step=lambda *_: None)


def test_what_was_made_is_described(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Callbacks are built from these fields."""
    made = sdxl.generate(image_job(num_images=3, steps=2), on_step=lambda *_: None)
    assert made.seeds == [7, 8, 9]
    assert 0 < made.seconds < 30
    assert made.metadata == {
        "batch_size": 3,
        "size_capped": False,
        "final_prompt_type": "string",
        "compel_success": False,
        "enhancement_strategy": "none",
    }
    assert made.asset_metadata == {"steps": 2, "effective_steps": 2, "guidance_scale": 6.0, "batch_size": 3}


def test_weights_reach_the_picture_and_the_callback(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """A caller who sends prompt weights sees them at work, and is told so."""
    plain = sdxl.generate(image_job(), on_step=lambda *_: None)
    job = image_job(compel_enabled=True, compel_weights="(bright:1.3)")
    weighted = sdxl.generate(job, on_step=lambda *_: None)
    told = {name: weighted.metadata[name] for name in ("enhancement_strategy", "compel_success")}
    assert told == {"enhancement_strategy": "compel", "compel_success": True}
    assert weighted.metadata["final_prompt_type"] == "conditioning_tensor"
    assert "compel_reason" not in weighted.metadata
    assert far(np.asarray(plain.images[0]).astype(int), np.asarray(weighted.images[0]).astype(int)) > LEVELS


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("part", ["unet", "vae.decoder", "text_encoder"])
def test_running_out_of_memory_is_an_error_of_ours(
    sdxl: SDXLPipeline, image_job: MakeJob, part: str, error: Exception
) -> None:
    """Wherever it happens, it becomes one retryable code and the next job runs."""

    def fail(*_: object) -> None:
        raise error

    model, _, inner = part.partition(".")
    hook = getattr(sdxl._pipe, model).get_submodule(inner).register_forward_pre_hook(fail)
    try:
        with pytest.raises(OutOfMemory, match="Not enough memory for 1 of 64x64") as raised:
            sdxl.generate(image_job(), on_step=lambda *_: None)
    finally:
        hook.remove()
    assert raised.value.__context__ is None, "the first error's traceback would keep its tensors alive"
    assert pictures(sdxl, image_job())


def test_out_of_memory_lets_go_of_the_job_s_tensors(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """The second attempt needs their room while the first one's error is still being reported."""
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        assert all(tensor() is None for tensor in held), "the next try found the last one's tensors"
        held.append(weakref.ref(inputs[0]))
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = sdxl._pipe.unet.register_forward_pre_hook(fail)
    try:
        with pytest.raises(OutOfMemory) as raised:
            sdxl.generate(image_job(), on_step=lambda *_: None)
    finally:
        hook.remove()
    assert raised.value.retryable
    assert [tensor() for tensor in held] == [None] * len(held)


def test_a_real_allocation_that_is_too_large_is_out_of_memory(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """The CPU allocator's own words must be recognised, not only those we remember."""
    hook = sdxl._pipe.unet.register_forward_pre_hook(
        lambda *_: torch.empty(1 << 60, dtype=torch.uint8) and None
    )
    try:
        with pytest.raises(OutOfMemory):
            sdxl.generate(image_job(), on_step=lambda *_: None)
    finally:
        hook.remove()


def test_other_errors_of_the_model_stay_what_they_are(sdxl: SDXLPipeline, image_job: MakeJob) -> None:
    """Calling every failure a lack of memory would retry what cannot succeed."""

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    hook = sdxl._pipe.unet.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="shapes do not match"):
            sdxl.generate(image_job(), on_step=lambda *_: None)
    finally:
        hook.remove()


def test_unloading_lets_go_of_the_weights(tiny: Checkpoint, image_job: MakeJob) -> None:
    """A neighbour on the GPU waits for this memory."""
    sdxl = SDXLPipeline(tiny)
    sdxl.load()
    sdxl.generate(image_job(), on_step=lambda *_: None)
    unet = weakref.ref(sdxl._pipe.unet)
    assert sdxl.info()["loaded"] is True
    sdxl.unload()
    sdxl.unload()
    assert unet() is None
    assert sdxl.info()["loaded"] is False
    assert sdxl.info()["memory_mib"] == 0


def test_loading_twice_keeps_the_weights(sdxl: SDXLPipeline) -> None:
    """A warm worker reads its checkpoint once."""
    before = sdxl._pipe
    sdxl.load()
    assert sdxl._pipe is before


def test_info_tells_where_and_what(sdxl: SDXLPipeline) -> None:
    """The health page and the doctor print it."""
    info = sdxl.info()
    assert (info["name"], info["kind"], info["native_size"]) == (sdxl.checkpoint.name, "tiny", 64)
    assert info["device"] in ("cpu", "cuda")
    assert info["memory_mib"] > 0
    assert info["load_seconds"] > 0


def test_an_unreadable_checkpoint_is_a_load_error(tiny: Checkpoint, tmp_path: Path) -> None:
    """An operator reads which folder and why."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_bytes((tiny.path / "model_index.json").read_bytes())
    with pytest.raises(ModelLoadError, match="broken could not be loaded"):
        SDXLPipeline(Checkpoint(broken, "folder")).load()


def test_pickled_weights_are_never_opened(tiny: Checkpoint, tmp_path: Path) -> None:
    """A pickle runs whatever its author wrote."""
    from shutil import copytree

    import safetensors.torch

    pickled = copytree(tiny.path, tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelLoadError):
        SDXLPipeline(Checkpoint(pickled, "folder")).load()
