from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ourvidz.errors import Cancelled, InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job

MakeJob = Callable[..., VideoJob]

LEVELS = 2
"""How far the 8-bit levels of two equal clips may lie apart: threads round differently."""


@pytest.fixture(scope="module")
def hills() -> Image.Image:
    """A landscape with another aspect than the clips."""
    across, down = np.meshgrid(np.arange(96), np.arange(64))
    return Image.fromarray(np.stack([across * 2, down * 3, 255 - across], axis=-1).astype(np.uint8))


@pytest.fixture(scope="module")
def references(hills: Image.Image) -> ReferenceImages:
    """Hills to start from, hills upside down to end on."""
    return ReferenceImages(single=hills, start=hills, end=hills.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


def clip(wan: WanPipeline, job: VideoJob, references: ReferenceImages | None = None) -> np.ndarray:
    made = wan.generate(job, references=references, on_step=lambda done, total: None)
    return np.stack([np.asarray(frame) for frame in made.frames]).astype(int)


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


@contextmanager
def passes(wan: WanPipeline) -> Iterator[list[int]]:
    """The batch size of every pass of the transformer in here."""
    seen: list[int] = []
    hook = wan.components.pipe.transformer.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["hidden_states"].shape[0]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def test_a_plain_clip_is_the_one_that_diffusers_makes(wan: WanPipeline) -> None:
    """The same weights, seed and settings mean the same clip in the library that the weights come with."""
    job = video_job(width=48, height=32, frames=9, steps=3, shift=5.0, negative_prompt="fog")
    theirs = diffusers.WanPipeline(**wan.components.pipe.components)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.UniPCMultistepScheduler.from_config(theirs.scheduler.config, flow_shift=5.0)
    expected = theirs(
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
    assert far(clip(wan, job), np.round(expected * 255).astype(int)) <= 1


@pytest.mark.parametrize(("asked", "generated"), [(1, 1), (2, 5), (5, 5), (6, 9)])
def test_a_clip_has_exactly_the_frames_that_were_asked_for(
    wan: WanPipeline, asked: int, generated: int
) -> None:
    """The model makes 4n + 1 of them; the surplus is cut off and owned up to."""
    made = wan.generate(video_job(frames=asked, steps=1), on_step=lambda *_: None)
    assert (len(made.frames), made.frames_generated) == (asked, generated)
    assert {(frame.mode, frame.size) for frame in made.frames} == {("RGB", (32, 32))}


def test_a_shorter_clip_is_the_beginning_of_the_one_that_was_generated(wan: WanPipeline) -> None:
    """What is cut off is the end."""
    assert far(clip(wan, video_job(frames=3)), clip(wan, video_job(frames=5))[:3]) <= LEVELS


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_a_seed_means_one_clip(wan: WanPipeline, solver: str) -> None:
    """A retried job must deliver the clip that its first attempt would have."""
    first, again = clip(wan, video_job(solver=solver)), clip(wan, video_job(solver=solver))
    assert far(first, again) <= LEVELS


def test_what_the_caller_sets_reaches_the_model(wan: WanPipeline) -> None:
    """Each of these is in the payload because it changes the clip."""
    plain = clip(wan, video_job(steps=3))
    for changed in (
        {"seed": 8},
        {"prompt": "a blue square"},
        {"negative_prompt": "clouds over hills"},
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"steps": 4},
        {"shift": 2.0},
        {"solver": "dpm++"},
    ):
        assert far(plain, clip(wan, video_job(**{"steps": 3} | changed))) > LEVELS, changed


def test_no_negative_prompt_is_the_empty_one(wan: WanPipeline) -> None:
    """Guidance needs something to lead away from, and nothing is invented."""
    assert far(clip(wan, video_job()), clip(wan, video_job(negative_prompt=""))) <= LEVELS


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_only_guidance_above_one_asks_the_model_twice_a_step(
    wan: WanPipeline, guidance: float, expected: int
) -> None:
    """At 1 the negative prompt has no weight, and half of the work would be for nothing."""
    with passes(wan) as seen:
        clip(wan, video_job(guidance_scale=guidance, negative_prompt="fog"))
    assert seen == [1] * expected


def test_a_long_prompt_counts_up_to_512_tokens(wan: WanPipeline) -> None:
    """Enhanced prompts are long; the last of 512 tokens is the end mark, and what follows is cut off."""

    def words(tokens: int, last: str) -> torch.Tensor:
        # This checkpoint reads letter by letter, and one token for the beginning of the word.
        return wan.encode(video_job(prompt="a" * (tokens - 2) + last)).prompt

    with torch.no_grad():
        assert words(400, "b").shape[:2] == (1, 512)
        assert not torch.equal(words(511, "b"), words(511, "c"))
        assert torch.equal(words(513, "b"), words(513, "c"))


def test_on_step_hears_every_step_before_and_after(wan: WanPipeline) -> None:
    """The deadline starts with the first call and progress comes from the others."""
    heard: list[tuple[int, int]] = []
    wan.generate(video_job(steps=3), on_step=lambda done, total: heard.append((done, total)))
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("stop_at", [0, 1, 4])
def test_a_cancelled_job_stops_before_the_next_step(wan: WanPipeline, stop_at: int) -> None:
    """Cancelling frees the GPU at once, and the next job finds the pipeline in order."""
    expected = clip(wan, video_job())

    def on_step(done: int, total: int) -> None:
        if done == stop_at:
            raise Cancelled("enough")

    with passes(wan) as seen, pytest.raises(Cancelled):
        wan.generate(video_job(steps=5, guidance_scale=1.0), on_step=on_step)
    assert len(seen) == stop_at
    assert far(expected, clip(wan, video_job())) <= LEVELS


@pytest.mark.parametrize(
    ("asked", "made", "is_capped"),
    [
        ((64, 48), (64, 48), False),
        ((128, 16), (128, 16), False),
        ((480, 832), (80, 128), True),
        ((832, 480), (128, 80), True),
        ((2048, 64), (128, 16), True),
    ],
)
def test_the_tiny_profile_renders_at_most_its_cap(
    wan: WanPipeline,
    asked: tuple[int, int],
    made: tuple[int, int],
    is_capped: bool,
) -> None:
    """A laptop renders a production request small, keeps its aspect and says so."""
    result = wan.generate(
        video_job(width=asked[0], height=asked[1], frames=1, steps=1), on_step=lambda *_: None
    )
    assert result.frames[0].size == made
    assert result.metadata["size_capped"] is is_capped


@pytest.mark.parametrize(("changed", "field"), [({"width": 40}, "width"), ({"height": 200}, "height")])
def test_what_cannot_be_rendered_is_refused(wan: WanPipeline, changed: dict[str, float], field: str) -> None:
    """Rounding it silently would deliver a clip nobody asked for."""
    with pytest.raises(InvalidParameters) as refused:
        wan.generate(video_job(**changed), on_step=lambda *_: None)
    assert (refused.value.field, refused.value.value) == (field, changed[field])


def test_a_mode_without_its_reference_is_refused(wan: WanPipeline) -> None:
    """Before any weight is moved."""
    with pytest.raises(InvalidParameters, match="start reference"):
        wan.generate(video_job(reference_mode="start"), on_step=lambda *_: None)


def round_trip(wan: WanPipeline, job: VideoJob, picture: Image.Image, frames: int = 1) -> torch.Tensor:
    """A still clip through the VAE and back: (frames, 3, height, width)."""
    from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor

    codec = VideoVAE(wan.components.pipe.vae)
    with torch.no_grad():
        return codec.decode(codec.encode(image_tensor(picture, job.width, job.height), frames=frames))


def climbed(
    wan: WanPipeline, job: VideoJob, references: ReferenceImages
) -> tuple[torch.Tensor, torch.Tensor]:
    """The finished latents and the frames, before they are rounded to bytes."""
    from ourvidz.pipelines.wan.reference_guidance import plan_references

    with torch.no_grad():
        planned = plan_references(job)
        latents = wan.denoise(
            job,
            wan.encode(job),
            wan.timesteps(job, planned),
            wan.latents(job, planned, references),
            progress=ProgressReporter(lambda *_: None),
        )
        return latents, wan.decode(latents)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("mode", ["start", "both", "single"])
@pytest.mark.parametrize("strength", [0.15, 0.5])
def test_a_clip_begins_on_its_reference(
    wan: WanPipeline,
    references: ReferenceImages,
    solver: str,
    mode: str,
    strength: float,
) -> None:
    """Up to the VAE's round trip, which no model behind a VAE can do better."""
    job = video_job(reference_mode=mode, solver=solver, denoise_strength=strength, steps=3)
    _, frames = climbed(wan, job, references)
    expected = round_trip(wan, job, references.start)[0]
    assert torch.allclose(frames[0], expected, atol=1e-4)
    assert not torch.allclose(frames[-1], expected, atol=1e-2)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("mode", ["end", "both"])
def test_a_clip_ends_on_its_reference(
    wan: WanPipeline, references: ReferenceImages, solver: str, mode: str
) -> None:
    """Its last latent frame is that of a still clip of the reference."""
    from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor

    job = video_job(reference_mode=mode, solver=solver, frames=8, steps=3)
    latents, _ = climbed(wan, job, references)
    with torch.no_grad():
        still = VideoVAE(wan.components.pipe.vae).encode(image_tensor(references.end, 32, 32), frames=9)
    assert torch.allclose(latents[:, :, -1], still[:, :, -1], atol=1e-4)


@pytest.mark.parametrize("mode", ["start", "end", "both", "single"])
def test_a_reference_changes_what_is_not_held_too(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """The model sees the held frames and goes on from them; else it would be a cut, not a clip."""
    plain, _ = climbed(wan, video_job(frames=9), references)
    steered, _ = climbed(wan, video_job(frames=9, reference_mode=mode), references)
    assert (plain - steered)[:, :, 1].abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["start", "end", "both", "single"])
def test_at_full_strength_the_prompt_alone_decides(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """A strength of 1 lets go of everything."""
    job = video_job(reference_mode=mode, denoise_strength=1.0)
    assert far(clip(wan, job, references), clip(wan, video_job())) <= LEVELS


@pytest.mark.parametrize("mode", ["start", "single"])
def test_above_one_half_the_first_frame_is_let_go(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """Then it may move away from its reference, which it holds on to up to there."""
    job = video_job(reference_mode=mode, denoise_strength=0.8, steps=5)
    _, frames = climbed(wan, job, references)
    assert not torch.allclose(frames[0], round_trip(wan, job, references.start)[0], atol=1e-2)


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({"frames": 5, "denoise_strength": 0.15}, 7),
        ({"frames": 5, "denoise_strength": 1.0}, 10),
        ({"frames": 1, "denoise_strength": 0.0}, 1),
        ({"frames": 1, "denoise_strength": 0.15}, 1),
        ({"frames": 1, "denoise_strength": 0.5}, 5),
    ],
)
def test_sdedit_takes_its_share_of_the_steps(
    wan: WanPipeline,
    references: ReferenceImages,
    changed: dict[str, float],
    steps: int,
) -> None:
    """And says how many: the callback reports them beside what was asked for."""
    job = video_job(reference_mode="single", steps=10, guidance_scale=1.0, **changed)
    heard: list[tuple[int, int]] = []
    with passes(wan) as seen:
        made = wan.generate(job, references=references, on_step=lambda *now: heard.append(now))
    assert len(seen) == steps
    assert heard[-1] == (steps, steps)
    assert (made.asset_metadata["steps"], made.asset_metadata["effective_steps"]) == (10, steps)


@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
def test_more_strength_takes_a_picture_further_from_its_reference(
    wan: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """From the reference itself to what the prompt alone would give."""
    first = "end" if mode == "end" else "start"
    distances = []
    for strength in (0.0, 0.15, 0.5, 0.8):
        job = video_job(frames=1, reference_mode=mode, denoise_strength=strength, steps=10)
        expected = round_trip(wan, job, getattr(references, first))
        distances.append(float((climbed(wan, job, references)[1] - expected).abs().mean()))
    assert distances[0] < 0.01
    assert distances == sorted(distances)


def test_a_job_with_references_leaves_nothing_for_the_next(
    wan: WanPipeline, references: ReferenceImages
) -> None:
    """A stranger's picture must never shine through somebody else's clip."""
    before = clip(wan, video_job())
    clip(wan, video_job(reference_mode="both", solver="dpm++", shift=9.0), references)
    assert far(before, clip(wan, video_job())) <= LEVELS


def test_what_was_made_is_described(wan: WanPipeline) -> None:
    """Callbacks are built from these fields."""
    made = wan.generate(video_job(fps=12), on_step=lambda *_: None)
    assert (made.seed, made.fps) == (7, 12)
    assert 0 < made.seconds < 60
    assert made.metadata == {
        "batch_size": 1,
        "size_capped": False,
        "final_prompt_type": "string",
        "compel_success": False,
    }
    assert made.asset_metadata == {"steps": 2, "effective_steps": 2, "guidance_scale": 6.5, "batch_size": 1}


@pytest.mark.parametrize(
    ("frames", "mode", "backend", "pipeline"),
    [
        (5, "start", "latent_replacement", "image_to_video"),
        (5, "single", "sdedit", "image_to_video"),
        (1, "both", "sdedit", "img2img"),
    ],
)
def test_how_references_were_used_is_described(
    wan: WanPipeline,
    references: ReferenceImages,
    frames: int,
    mode: str,
    backend: str,
    pipeline: str,
) -> None:
    """Operators compare methods by these, and callers see what their strength did."""
    job = video_job(frames=frames, reference_mode=mode, denoise_strength=0.4, negative_prompt="fog")
    made = wan.generate(job, references=references, on_step=lambda *_: None)
    assert made.metadata["reference_backend"] == backend
    told = {name: made.asset_metadata[name] for name in ("denoise_strength", "pipeline", "resize_policy")}
    assert told == {"denoise_strength": 0.4, "pipeline": pipeline, "resize_policy": "center_crop"}
    assert made.asset_metadata["negative_prompt_used"] is True


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("transformer", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")),
        ("text_encoder", RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
        ("vae.encoder", torch.OutOfMemoryError("CUDA out of memory")),
        ("vae.decoder", MemoryError()),
    ],
)
def test_running_out_of_memory_is_an_error_of_ours(
    wan: WanPipeline, references: ReferenceImages, part: str, error: Exception
) -> None:
    """Wherever it happens, it becomes one retryable code and the next job runs."""

    def fail(*_: object) -> None:
        raise error

    model, _, inner = part.partition(".")
    hook = getattr(wan.components.pipe, model).get_submodule(inner).register_forward_pre_hook(fail)
    job = video_job(reference_mode="start", steps=1)
    try:
        with pytest.raises(OutOfMemory, match="Not enough memory for 5 frames of 32x32") as raised:
            wan.generate(job, references=references, on_step=lambda *_: None)
    finally:
        hook.remove()
    assert raised.value.__context__ is None, "the first error's traceback would keep its tensors alive"
    assert clip(wan, job, references).shape == (5, 32, 32, 3)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_out_of_memory_in_the_vae_lets_go_of_its_caches(
    wan: WanPipeline, references: ReferenceImages, part: str
) -> None:
    """It keeps the frames it has seen on itself; the second attempt needs their room."""
    held: list[weakref.ref[torch.Tensor]] = []

    def note(_: object, args: tuple[torch.Tensor, ...], given: dict[str, list[torch.Tensor]]) -> None:
        held.extend(weakref.ref(kept) for kept in given["feat_cache"] if isinstance(kept, torch.Tensor))
        if held:  # the second part of the clip, when the caches are full
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = wan.components.pipe.vae.get_submodule(part).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with pytest.raises(OutOfMemory) as raised:
            wan.generate(
                video_job(reference_mode="end", steps=1), references=references, on_step=lambda *_: None
            )
    finally:
        hook.remove()
    assert raised.value.retryable
    assert held
    assert {kept() for kept in held} == {None}


def test_other_errors_of_the_model_stay_what_they_are(wan: WanPipeline) -> None:
    """Calling every failure a lack of memory would retry what cannot succeed."""

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    hook = wan.components.pipe.transformer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="shapes do not match"):
            clip(wan, video_job())
    finally:
        hook.remove()


def test_the_vae_stays_in_single_precision(wan_checkpoint: Checkpoint, references: ReferenceImages) -> None:
    """On a GPU the rest runs in half; a reference must come back as it was all the same."""
    halved = WanPipeline(wan_checkpoint, dtype=torch.bfloat16)
    halved.load()
    assert halved.components.pipe.transformer.patch_embedding.weight.dtype == torch.bfloat16
    assert halved.components.pipe.vae.dtype == torch.float32
    job = video_job(reference_mode="start", steps=1)
    _, frames = climbed(halved, job, references)
    assert torch.allclose(frames[0], round_trip(halved, job, references.start)[0], atol=1e-4)


def test_unloading_lets_go_of_the_weights(wan_checkpoint: Checkpoint) -> None:
    """A neighbour on the GPU waits for this memory."""
    wan = WanPipeline(wan_checkpoint)
    clip(wan, video_job(steps=1, frames=1))
    transformer = weakref.ref(wan.components.pipe.transformer)
    assert wan.info()["loaded"] is True
    wan.unload()
    wan.unload()
    assert transformer() is None
    assert (wan.info()["loaded"], wan.info()["memory_mib"]) == (False, 0)


def test_loading_twice_keeps_the_weights(wan: WanPipeline) -> None:
    """A warm worker reads its checkpoint once."""
    before = wan.components.pipe
    wan.load()
    assert wan.components.pipe is before


def test_info_tells_where_and_what(wan: WanPipeline) -> None:
    """The health page and the doctor print it."""
    info = wan.info()
    assert (info["name"], info["kind"], info["size_cap"]) == (wan.checkpoint.name, "tiny", 128)
    assert info["device"] in ("cpu", "cuda")
    assert info["load_seconds"] > 0


def test_an_unreadable_checkpoint_is_a_load_error(wan_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """An operator reads which folder and why."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_bytes((wan_checkpoint.path / "model_index.json").read_bytes())
    with pytest.raises(ModelLoadError, match="broken could not be loaded"):
        WanPipeline(Checkpoint(broken, "folder")).load()


def test_a_load_that_broke_off_leaves_nothing_half_loaded(
    wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call would take what there is for a warm checkpoint, without VACE and without its cache."""

    def full(*_: Any) -> None:
        raise MemoryError

    wan = WanPipeline(wan_checkpoint, cap=64, options=WanOptions(cache="mag", previews=False))
    monkeypatch.setattr(wan, "_measure_magnitudes", full)
    with pytest.raises(ModelLoadError):
        wan.load()
    assert (wan.info()["loaded"], wan.info()["memory_mib"]) == (False, 0)
    monkeypatch.undo()
    wan.load()
    assert wan._cache.name == "mag"


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_pickled_weights_are_never_opened(wan_checkpoint: Checkpoint, tmp_path: Path, part: str) -> None:
    """A pickle runs whatever its author wrote."""
    pickled = copytree(wan_checkpoint.path, tmp_path / "pickled")
    weights = pickled / part / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelLoadError):
        WanPipeline(Checkpoint(pickled, "folder")).load()


def test_a_changed_file_is_not_loaded(wan_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Where a checkpoint lists its checksums, they are compared first."""
    copied = copytree(wan_checkpoint.path, tmp_path / "copied")
    (copied / "SHA256SUMS").write_text(f"{'0' * 64}  model_index.json\n")
    with pytest.raises(ModelLoadError, match="SHA256SUMS"):
        WanPipeline(Checkpoint(copied, "folder")).load()
