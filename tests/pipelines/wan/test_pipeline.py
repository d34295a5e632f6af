"""The Wan pipeline: text-to-video, progress, errors, loading."""

from __future__ import annotations

import weakref
from pathlib import Path
from shutil import copytree
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from ourvidz.errors import Cancelled, InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    batch_sizes,
    clip_levels,
    difference,
    no_progress,
    raising,
)
from tests.pipelines.wan.references import landscape_references


@pytest.fixture(scope="module")
def references() -> ReferenceImages:
    return landscape_references()


def test_a_clip_equals_the_one_that_diffusers_generates(wan: WanPipeline) -> None:
    """With the same weights, seed and settings."""
    job = video_job(width=48, height=32, frames=9, steps=3, shift=5.0, negative_prompt="fog")
    pipe = diffusers.WanPipeline(**wan.components.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=5.0)
    expected = pipe(
        prompt=job.prompt,
        negative_prompt="fog",
        width=48,
        height=32,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=6.5,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    assert difference(clip_levels(wan, job), np.round(expected * 255)) <= 1


@pytest.mark.parametrize(("requested", "generated"), [(1, 1), (2, 5), (5, 5), (6, 9)])
def test_a_clip_has_exactly_the_requested_number_of_frames(
    wan: WanPipeline, requested: int, generated: int
) -> None:
    """The model generates 4n + 1; the surplus is cut off, and the number reported."""
    result = wan.generate(video_job(frames=requested, steps=1), on_step=no_progress)
    assert (len(result.frames), result.frames_generated) == (requested, generated)
    assert {(frame.mode, frame.size) for frame in result.frames} == {("RGB", (32, 32))}


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (5, 2)])
def test_the_result_offers_its_middle_frame(wan: WanPipeline, frames: int, middle: int) -> None:
    """For the thumbnail, without decoding the video file."""
    result = wan.generate(video_job(frames=frames, steps=1), on_step=no_progress)
    assert result.middle_frame is result.frames[middle]


def test_surplus_frames_are_cut_off_at_the_end(wan: WanPipeline) -> None:
    """Without references."""
    three, five = (clip_levels(wan, video_job(frames=frames)) for frames in (3, 5))
    assert difference(three, five[:3]) <= MAX_DIFFERENCE


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_a_seed_determines_the_clip(wan: WanPipeline, solver: str) -> None:
    """A retried job must deliver the clip that its first attempt would have delivered."""
    first, second = (clip_levels(wan, video_job(solver=solver)) for _ in range(2))
    assert difference(first, second) <= MAX_DIFFERENCE


def test_every_parameter_changes_the_clip(wan: WanPipeline) -> None:
    """What the caller sends must reach the model."""
    default = clip_levels(wan, video_job(steps=3))
    for changes in (
        {"seed": 8},
        {"prompt": "a blue square"},
        {"negative_prompt": "clouds over hills"},
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"steps": 4},
        {"shift": 2.0},
        {"solver": "dpm++"},
    ):
        clip = clip_levels(wan, video_job(**{"steps": 3} | changes))
        assert difference(default, clip) > MAX_DIFFERENCE, changes


def test_the_default_negative_prompt_is_empty(wan: WanPipeline) -> None:
    """No text is added."""
    one, other = (clip_levels(wan, video_job(negative_prompt=prompt)) for prompt in (None, ""))
    assert difference(one, other) <= MAX_DIFFERENCE


@pytest.mark.parametrize(("guidance_scale", "expected"), [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_the_transformer_runs_twice_per_step_only_with_guidance(
    wan: WanPipeline, guidance_scale: float, expected: int
) -> None:
    """At a scale of 1 the negative prompt has no weight."""
    with batch_sizes(wan.components.pipe.transformer) as sizes:
        clip_levels(wan, video_job(guidance_scale=guidance_scale, negative_prompt="fog"))
    assert sizes == [1] * expected


def test_a_prompt_is_truncated_after_512_tokens(wan: WanPipeline) -> None:
    """Enhanced prompts are long. The last of the 512 tokens is the end mark."""

    def embeds(tokens: int, last: str) -> torch.Tensor:
        # This tokenizer has one token per letter, and one before each word.
        return wan.encode(video_job(prompt="a" * (tokens - 2) + last)).prompt

    with torch.no_grad():
        assert embeds(400, "b").shape[:2] == (1, 512)
        assert not torch.equal(embeds(511, "b"), embeds(511, "c"))
        assert torch.equal(embeds(513, "b"), embeds(513, "c"))


def test_on_step_is_called_before_the_first_and_after_every_step(wan: WanPipeline) -> None:
    """The first call starts the deadline, the others report progress."""
    reported: list[tuple[int, int]] = []
    wan.generate(video_job(steps=3), on_step=lambda done, total: reported.append((done, total)))
    assert reported == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("stop_at", [0, 1, 4])
def test_a_cancelled_job_stops_before_the_next_step(wan: WanPipeline, stop_at: int) -> None:
    """Cancelling frees the GPU at once, and the pipeline stays usable."""
    expected = clip_levels(wan, video_job())

    def on_step(done: int, total: int) -> None:
        if done == stop_at:
            raise Cancelled("enough")

    with batch_sizes(wan.components.pipe.transformer) as sizes, pytest.raises(Cancelled):
        wan.generate(video_job(steps=5, guidance_scale=1.0), on_step=on_step)
    assert len(sizes) == stop_at
    assert difference(expected, clip_levels(wan, video_job())) <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("requested", "rendered", "is_capped"),
    [
        ((64, 48), (64, 48), False),
        ((128, 16), (128, 16), False),
        ((480, 832), (80, 128), True),
        ((832, 480), (128, 80), True),
        ((2048, 64), (128, 16), True),
    ],
)
def test_the_size_cap_keeps_the_aspect_ratio(
    wan: WanPipeline, requested: tuple[int, int], rendered: tuple[int, int], is_capped: bool
) -> None:
    """The tiny profile renders a production request small and reports that."""
    job = video_job(width=requested[0], height=requested[1], frames=1, steps=1)
    result = wan.generate(job, on_step=no_progress)
    assert result.frames[0].size == rendered
    assert result.metadata["size_capped"] is is_capped


@pytest.mark.parametrize(("changes", "field"), [({"width": 40}, "width"), ({"height": 200}, "height")])
def test_a_size_that_is_no_multiple_of_16_is_refused(
    wan: WanPipeline, changes: dict[str, float], field: str
) -> None:
    """Rounding it silently would deliver a clip that nobody requested."""
    with pytest.raises(InvalidParameters) as refused:
        wan.generate(video_job(**changes), on_step=no_progress)
    assert (refused.value.field, refused.value.value) == (field, changes[field])


def test_the_result_has_the_metadata_of_the_callback(wan: WanPipeline) -> None:
    """Callbacks are built from these fields."""
    result = wan.generate(video_job(fps=12), on_step=no_progress)
    assert (result.seed, result.fps) == (7, 12)
    assert 0 < result.seconds < 60
    assert result.metadata.pop("receipt")["results"]
    assert result.metadata == {
        "size_capped": False,
        "final_prompt_type": "string",
        "compel_success": False,
        "embedding_cache": {"hits": 0, "misses": 2},
    }
    assert result.asset_metadata == {"steps": 2, "effective_steps": 2, "guidance_scale": 6.5}


@pytest.mark.parametrize(
    ("component", "error"),
    [
        ("transformer", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")),
        ("text_encoder", RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
        ("vae.encoder", torch.OutOfMemoryError("CUDA out of memory")),
        ("vae.decoder", MemoryError()),
    ],
)
def test_every_out_of_memory_error_becomes_ours(
    wan: WanPipeline, references: ReferenceImages, component: str, error: Exception
) -> None:
    """Wherever it happens, it becomes one retryable code, and the next job runs."""

    def fail(*_: object) -> None:
        raise error

    model, _, inner = component.partition(".")
    module = getattr(wan.components.pipe, model).get_submodule(inner)
    hook = module.register_forward_pre_hook(fail)
    job = video_job(reference_mode="start", steps=1)
    try:
        with pytest.raises(OutOfMemory, match="Not enough memory for 5 frames of 32x32") as raised:
            wan.generate(job, references=references, on_step=no_progress)
    finally:
        hook.remove()
    assert raised.value.__context__ is None, "the first error's traceback would keep its tensors alive"
    assert clip_levels(wan, job, references=references).shape == (5, 32, 32, 3)


@pytest.mark.parametrize("component", ["encoder", "decoder"])
def test_out_of_memory_in_the_vae_frees_its_feature_cache(
    wan: WanPipeline, references: ReferenceImages, component: str
) -> None:
    """The VAE caches features on itself; the next attempt needs their memory."""
    tensors: list[weakref.ref[torch.Tensor]] = []

    def fail(_: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, list[torch.Tensor]]) -> None:
        cache = kwargs["feat_cache"]
        tensors.extend(weakref.ref(tensor) for tensor in cache if isinstance(tensor, torch.Tensor))
        if tensors:  # the second part of the clip, when the cache is filled
            raise torch.OutOfMemoryError("CUDA out of memory")

    module = wan.components.pipe.vae.get_submodule(component)
    hook = module.register_forward_pre_hook(fail, with_kwargs=True)
    job = video_job(reference_mode="end", steps=1)
    try:
        with pytest.raises(OutOfMemory) as raised:
            wan.generate(job, references=references, on_step=no_progress)
    finally:
        hook.remove()
    assert raised.value.retryable
    assert tensors
    assert {tensor() for tensor in tensors} == {None}


def test_other_errors_of_the_model_are_raised_unchanged(wan: WanPipeline) -> None:
    """Treating every failure as a lack of memory would retry what cannot succeed."""
    error = RuntimeError("shapes do not match")
    with (
        raising(wan.components.pipe.transformer, error),
        pytest.raises(RuntimeError, match="shapes do not match"),
    ):
        clip_levels(wan, video_job())


def test_unloading_frees_the_weights(wan_checkpoint: Checkpoint) -> None:
    """Another process on the GPU waits for this memory."""
    wan = WanPipeline(wan_checkpoint)
    clip_levels(wan, video_job(steps=1, frames=1))
    transformer = weakref.ref(wan.components.pipe.transformer)
    assert wan.info()["loaded"] is True
    wan.unload()
    wan.unload()
    assert transformer() is None
    assert (wan.info()["loaded"], wan.info()["memory_mib"]) == (False, 0)


def test_loading_is_idempotent(wan: WanPipeline) -> None:
    """A worker reads its checkpoint once."""
    loaded = wan.components.pipe
    wan.load()
    assert wan.components.pipe is loaded


def test_info_describes_the_checkpoint_and_where_it_is_loaded(wan: WanPipeline) -> None:
    """`/model/info` and `doctor` show it."""
    info = wan.info()
    assert (info["name"], info["kind"], info["size_cap"]) == (wan.checkpoint.name, "tiny", 128)
    assert info["device"] in ("cpu", "cuda")
    assert info["load_seconds"] > 0


def test_an_unreadable_checkpoint_is_a_load_error(wan_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The message names the folder and the reason."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_bytes((wan_checkpoint.path / "model_index.json").read_bytes())
    with pytest.raises(ModelLoadError, match="broken could not be loaded"):
        WanPipeline(Checkpoint(broken, "folder")).load()


def test_a_failed_load_leaves_nothing_loaded(
    wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call would take a partly loaded pipeline for a complete one, without VACE or its step
    cache."""

    def run_out_of_memory(*_: Any) -> None:
        raise MemoryError

    wan = WanPipeline(wan_checkpoint, cap=64, options=WanOptions(cache="mag", previews=False))
    monkeypatch.setattr(wan, "_measure_magnitudes", run_out_of_memory)
    with pytest.raises(ModelLoadError):
        wan.load()
    assert (wan.info()["loaded"], wan.info()["memory_mib"]) == (False, 0)
    monkeypatch.undo()
    wan.load()
    assert wan._cache.name == "mag"


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_pickled_weights_are_never_loaded(wan_checkpoint: Checkpoint, tmp_path: Path, component: str) -> None:
    """A pickle can run any code."""
    pickled = copytree(wan_checkpoint.path, tmp_path / "pickled")
    weights = pickled / component / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelLoadError):
        WanPipeline(Checkpoint(pickled, "folder")).load()


def test_a_changed_file_is_not_loaded(wan_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The checksums are verified first."""
    copied = copytree(wan_checkpoint.path, tmp_path / "copied")
    (copied / "SHA256SUMS").write_text(f"{'0' * 64}  model_index.json\n")
    with pytest.raises(ModelLoadError, match="SHA256SUMS"):
        WanPipeline(Checkpoint(copied, "folder")).load()
