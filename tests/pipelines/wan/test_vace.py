"""VACE beside the text-to-video checkpoint: every reference mode, and source videos."""

from __future__ import annotations

import gc
import json
import weakref
from itertools import pairwise
from pathlib import Path
from shutil import copytree

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import Cancelled, ModelLoadError
from ourvidz.pipelines.base import ReferenceImages, SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor, to_images
from tests.factories import video_job
from tests.pipelines.helpers import MAX_DIFFERENCE, Pixels, clip_levels, difference, levels, no_progress
from training.untrained.wan_image_models import build_vace

pytestmark = pytest.mark.model

MODES = ("single", "start", "end", "both")


@pytest.fixture(scope="module")
def vace_folder(wan_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VACE checkpoint with the weights of the untrained one and random additional blocks."""
    folder = tmp_path_factory.mktemp("vace") / "tiny-vace"
    build_vace(folder, text_to_video=wan_checkpoint.path)
    return folder


@pytest.fixture(scope="module")
def with_vace(wan_checkpoint: Checkpoint, vace_folder: Path) -> WanPipeline:
    """A loaded text-to-video pipeline with VACE beside it."""
    pipeline = WanPipeline(wan_checkpoint, vace=find_wan(vace_folder), cap=128)
    pipeline.load()
    return pipeline


@pytest.fixture(scope="module")
def vace_only(vace_folder: Path) -> WanPipeline:
    """A VACE checkpoint that runs all jobs, as the vace tasks of the command line do."""
    return WanPipeline(find_wan(vace_folder), cap=128)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> WanPipeline:
    """The packaged checkpoint with VACE beside it, which has the same weights and additional blocks that
    output zeros."""
    packaged = find_wan(None)
    folder = tmp_path_factory.mktemp("trained") / "tiny-vace"
    build_vace(folder, text_to_video=packaged.path, zero_blocks=True)
    return WanPipeline(packaged, vace=find_wan(folder), cap=64)


def random_image(seed: int, side_px: int = 32) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side_px, side_px), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def references() -> ReferenceImages:
    return ReferenceImages(single=random_image(1), start=random_image(1), end=random_image(2))


def psnr_db(one: Pixels | Image.Image, other: Pixels | Image.Image) -> float:
    """Peak signal-to-noise ratio (dB)."""
    error = float(np.mean((np.asarray(one).astype(float) - np.asarray(other).astype(float)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def round_trip(wan: WanPipeline, image: Image.Image, side_px: int) -> Image.Image:
    """The image after encoding and decoding: no model with this VAE can come nearer to it."""
    vae = VideoVAE(wan.components.pipe.vae)
    with torch.no_grad():
        return to_images(vae.decode(vae.encode(image_tensor(image, side_px, side_px))))[0]


@pytest.mark.parametrize("frames", [9, 1])
@pytest.mark.parametrize("mode", MODES)
def test_vace_runs_every_job_with_references(
    wan: WanPipeline, with_vace: WanPipeline, references: ReferenceImages, mode: str, frames: int
) -> None:
    """If it is configured; its blocks change the clip."""
    steps = 10 if frames == 1 else 3
    job = video_job(reference_mode=mode, frames=frames, steps=steps, denoise_strength=0.3)
    result = with_vace.generate(job, references=references, on_step=no_progress)
    assert result.metadata["reference_backend"] == "vace"
    without_vace = clip_levels(wan, job, references=references)
    assert difference(levels(result.frames), without_vace) > MAX_DIFFERENCE


@pytest.mark.parametrize("frames", [9, 1])
def test_vace_jobs_have_previews(with_vace: WanPipeline, references: ReferenceImages, frames: int) -> None:
    """After every step but the last."""
    previews: list[Image.Image] = []
    with_vace.generate(
        video_job(reference_mode="start", frames=frames, steps=5, denoise_strength=1.0),
        references=references,
        on_step=no_progress,
        on_preview=lambda snapshot: previews.append(snapshot()()),
    )
    assert [preview.size for preview in previews] == [(128, 128)] * 4
    assert len({preview.tobytes() for preview in previews}) == 4


def test_a_job_without_references_runs_on_the_text_to_video_checkpoint(
    wan: WanPipeline, with_vace: WanPipeline
) -> None:
    """Its clips must not change because VACE is configured."""
    result = with_vace.generate(video_job(), on_step=no_progress)
    assert "reference_backend" not in result.metadata
    assert difference(levels(result.frames), clip_levels(wan, video_job())) <= MAX_DIFFERENCE


@pytest.mark.parametrize("mode", ["single", "start", "both"])
def test_the_first_frame_equals_the_reference(
    with_vace: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """VACE alone would only come near it: a mask of one frame has no effect at the size of the latents."""
    clip = clip_levels(with_vace, video_job(reference_mode=mode, steps=3), references=references)
    assert references.start is not None
    assert difference(clip[0], round_trip(with_vace, references.start, 32)) <= MAX_DIFFERENCE


@pytest.mark.parametrize("mode", MODES)
def test_at_full_strength_the_references_have_no_effect(
    wan: WanPipeline, with_vace: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """VACE's blocks have no weight then, and its other weights are those of the text-to-video checkpoint."""
    job = video_job(reference_mode=mode, denoise_strength=1.0)
    clip = clip_levels(with_vace, job, references=references)
    assert difference(clip, clip_levels(wan, video_job())) <= MAX_DIFFERENCE


def test_vace_with_zero_blocks_equals_the_text_to_video_checkpoint(
    trained: WanPipeline, references: ReferenceImages
) -> None:
    """In every mode, with the same replacement of latents."""
    plain = WanPipeline(find_wan(None), cap=64)
    for mode in MODES:
        job = video_job(reference_mode=mode, prompt="a red circle", width=64, height=64, frames=9, steps=2)
        one, other = (clip_levels(wan, job, references=references) for wan in (trained, plain))
        assert difference(one, other) <= 1, mode


def resize(image: Image.Image | None) -> Image.Image:
    assert image is not None
    return image.resize((64, 64), Image.Resampling.LANCZOS)


def test_references_condition_the_trained_checkpoint(
    trained: WanPipeline, references: ReferenceImages
) -> None:
    """A clip starts on its reference, comes nearer to an end reference, and stays near a single one."""
    fields = {"prompt": "a red star moving right", "width": 64, "height": 64, "frames": 9, "steps": 8}
    plain = clip_levels(trained, video_job(**fields))
    clips = {
        mode: clip_levels(trained, video_job(reference_mode=mode, **fields), references=references)
        for mode in MODES
    }
    assert references.start is not None
    expected = round_trip(trained, references.start, 64)
    for mode in ("start", "both", "single"):
        assert psnr_db(clips[mode][0], expected) >= 30, mode
    end = resize(references.end)
    for mode in ("end", "both"):
        assert psnr_db(clips[mode][-1], end) >= psnr_db(plain[-1], end) + 3, mode
    still = levels([resize(references.start)] * 9)
    assert psnr_db(clips["single"], still) > psnr_db(plain, still)


@pytest.mark.parametrize("mode", MODES)
def test_more_strength_never_brings_the_clip_nearer_to_the_reference(trained: WanPipeline, mode: str) -> None:
    """From the reference to what the prompt alone generates."""
    image = Image.new("RGB", (64, 64), "green")
    image.paste("red", (20, 20, 44, 44))
    references = ReferenceImages(single=image, start=image, end=image)
    fields = {"prompt": "a blue square on white", "width": 64, "height": 64, "frames": 9, "steps": 6}
    frame = -1 if mode == "end" else 0
    nearness = []
    for strength in (0.0, 0.8, 1.0):
        job = video_job(reference_mode=mode, denoise_strength=strength, **fields)
        nearness.append(psnr_db(clip_levels(trained, job, references=references)[frame], image))
    assert all(following <= current + 0.2 for current, following in pairwise(nearness)), nearness
    assert nearness[0] > nearness[-1] + 3


@pytest.mark.parametrize("mode", MODES)
def test_a_single_frame_moves_away_from_its_reference_with_the_strength(
    trained: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """It uses SDEdit, and VACE's weight falls with the strength."""
    reference = resize(references.end if mode == "end" else references.start)
    nearness = []
    for strength in (0.1, 0.4, 0.9):
        job = video_job(
            reference_mode=mode, denoise_strength=strength, width=64, height=64, frames=1, steps=12
        )
        nearness.append(psnr_db(clip_levels(trained, job, references=references)[0], reference))
    assert nearness == sorted(nearness, reverse=True)


def test_a_clip_from_a_source_video_equals_the_one_that_diffusers_generates(vace_only: WanPipeline) -> None:
    """Frames, masks and reference images have the same meaning."""
    frames = {frame: random_image(frame) for frame in range(9)}
    right_half = np.pad(np.full((32, 16), 255, np.uint8), ((0, 0), (0, 16)))
    masks = {frame: Image.fromarray(right_half) for frame in range(9)}
    masks[0] = Image.new("L", (32, 32), 0)
    reference = random_image(50)
    job = video_job(frames=9, steps=3, guidance_scale=4.0)
    clip = clip_levels(vace_only, job, source=SourceVideo(frames, masks, (reference,)))
    components = vace_only.components.pipe.components
    pipe = diffusers.WanVACEPipeline(**{name: part for name, part in components.items() if part})
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=5.0)
    embeds = vace_only.encode(job)
    expected = pipe(
        video=list(frames.values()),
        mask=[mask.convert("RGB") for mask in masks.values()],
        reference_images=[reference],
        prompt_embeds=embeds.prompt,
        negative_prompt_embeds=embeds.negative,
        width=32,
        height=32,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    assert difference(clip, np.round(expected * 255)) <= 1


def test_the_metadata_names_vace_only_with_a_source_video(vace_only: WanPipeline) -> None:
    """Without one its blocks are told to generate everything."""
    source = SourceVideo({0: random_image(1)})
    result = vace_only.generate(video_job(frames=2), source=source, on_step=no_progress)
    assert (result.metadata["reference_backend"], len(result.frames)) == ("vace", 2)
    plain = vace_only.generate(video_job(), on_step=no_progress)
    assert "reference_backend" not in plain.metadata


def test_a_cancelled_job_stops_before_the_next_step(
    with_vace: WanPipeline, references: ReferenceImages
) -> None:
    """As on the text-to-video checkpoint."""
    reported: list[int] = []

    def on_step(done: int, total: int) -> None:
        reported.append(done)
        if done == 2:
            raise Cancelled("enough")

    job = video_job(reference_mode="start", steps=5)
    with pytest.raises(Cancelled):
        with_vace.generate(job, references=references, on_step=on_step)
    assert reported == [0, 1, 2]


def test_equal_weights_of_both_checkpoints_are_in_memory_once(
    wan: WanPipeline, with_vace: WanPipeline
) -> None:
    """Of VACE 1.3B that saves 2.8 GB in half precision."""
    text_to_video, vace = with_vace.components.pipe, with_vace.components.vace
    assert (
        vace.transformer.blocks[0].attn1.to_q.weight is text_to_video.transformer.blocks[0].attn1.to_q.weight
    )
    assert vace.text_encoder is text_to_video.text_encoder
    total, shared = (
        sum(weight.nbytes for weight in pipe.transformer.parameters()) for pipe in (vace, text_to_video)
    )
    expected_mib = wan.info()["memory_mib"] + (total - shared) / 2**20
    assert with_vace.info()["memory_mib"] == pytest.approx(expected_mib, abs=1)
    assert (with_vace.info()["model"], with_vace.info()["vace"]) == ("t2v", "tiny-vace")


def test_unloading_frees_both_checkpoints(wan_checkpoint: Checkpoint, vace_folder: Path) -> None:
    """Loading restores both."""
    wan = WanPipeline(wan_checkpoint, vace=find_wan(vace_folder))
    wan.load()
    transformer = weakref.ref(wan.components.vace.transformer)
    wan.unload()
    gc.collect()
    assert transformer() is None
    assert wan.info()["memory_mib"] == 0
    wan.load()
    assert wan.components.vace is not None


def test_if_vace_cannot_be_loaded_nothing_is_loaded(
    wan_checkpoint: Checkpoint, vace_folder: Path, tmp_path: Path
) -> None:
    """A worker that is configured with VACE must not generate clips without it."""
    truncated = copytree(vace_folder, tmp_path / "truncated")
    wan = WanPipeline(wan_checkpoint, vace=find_wan(truncated))
    (truncated / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"half a download")
    with pytest.raises(ModelLoadError, match="truncated could not be loaded"):
        wan.load()
    assert wan.info()["loaded"] is False
    with pytest.raises(ModelLoadError):
        wan.load()


def test_vace_with_other_input_sizes_is_refused(vace_folder: Path, tmp_path: Path) -> None:
    """The two share text encoder and VAE; another transformer would fail with its first job."""
    other = copytree(vace_folder, tmp_path / "other")
    wan = WanPipeline(find_wan(None), vace=find_wan(other))
    assert json.loads((other / "transformer/config.json").read_text())["text_dim"] == 32
    with pytest.raises(ModelLoadError, match=r"text_dim 32.*do not belong together"):
        wan.load()
