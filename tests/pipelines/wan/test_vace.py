"""VACE beside the text-to-video checkpoint: every reference mode, and clips made from clips."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from shutil import copytree

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import Cancelled, ModelLoadError
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import ReferenceImages, SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor
from tests.factories import video_job
from training.untrained.wan_image_models import build_vace

MakeJob = Callable[..., VideoJob]
MODES = ("single", "start", "end", "both")
LEVELS = 2
"""How far the 8-bit levels of two equal clips may lie apart: threads round differently."""


@pytest.fixture(scope="module")
def vace_folder(wan_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VACE checkpoint on the untrained one's weights, whose further blocks say something at random."""
    folder = tmp_path_factory.mktemp("vace") / "tiny-vace"
    build_vace(folder, text_to_video=wan_checkpoint.path)
    return folder


@pytest.fixture(scope="module")
def both(wan_checkpoint: Checkpoint, vace_folder: Path) -> WanPipeline:
    """A warm pipeline with VACE beside the checkpoint for text."""
    pipeline = WanPipeline(wan_checkpoint, vace=find_wan(vace_folder), cap=128)
    pipeline.load()
    return pipeline


@pytest.fixture(scope="module")
def alone(vace_folder: Path) -> WanPipeline:
    """A VACE checkpoint that serves everything, as the vace tasks of the command line run it."""
    return WanPipeline(find_wan(vace_folder), cap=128)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> WanPipeline:
    """VACE on the weights of the trained checkpoint that ships, with further blocks that add nothing."""
    text = find_wan(None)
    folder = tmp_path_factory.mktemp("trained") / "tiny-vace"
    build_vace(folder, text_to_video=text.path, zero_blocks=True)
    return WanPipeline(text, vace=find_wan(folder), cap=64)


def noise_picture(seed: int, side: int = 32) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def references() -> ReferenceImages:
    """A landscape of blots to start from, another to end on."""
    return ReferenceImages(single=noise_picture(1), start=noise_picture(1), end=noise_picture(2))


def clip(
    wan: WanPipeline,
    job: VideoJob,
    references: ReferenceImages | None = None,
    source: SourceVideo | None = None,
) -> np.ndarray:
    made = wan.generate(job, references=references, source=source, on_step=lambda *_: None)
    return np.stack([np.asarray(frame) for frame in made.frames]).astype(int)


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def decibel(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def round_trip(wan: WanPipeline, picture: Image.Image, side: int) -> np.ndarray:
    codec = VideoVAE(wan.components.pipe.vae)
    with torch.no_grad():
        frame = codec.decode(codec.encode(image_tensor(picture, side, side)))[0]
    return ((frame.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("frames", [9, 1])
@pytest.mark.parametrize("mode", MODES)
def test_vace_serves_every_mode_and_hears_the_reference(
    wan: WanPipeline,
    both: WanPipeline,
    references: ReferenceImages,
    mode: str,
    frames: int,
) -> None:
    """Configured, it is the default; and what its blocks say reaches the clip."""
    steps = 10 if frames == 1 else 3
    job = video_job(reference_mode=mode, frames=frames, steps=steps, denoise_strength=0.3)
    made = both.generate(job, references=references, on_step=lambda *_: None)
    assert made.metadata["reference_backend"] == "vace"
    heard = np.stack([np.asarray(frame) for frame in made.frames]).astype(int)
    assert far(heard, clip(wan, job, references)) > LEVELS


@pytest.mark.parametrize("frames", [9, 1])
def test_a_clip_that_vace_makes_can_be_looked_at(
    both: WanPipeline, references: ReferenceImages, frames: int
) -> None:
    """Its followers see unfinished pictures as those of any other job do."""
    looks: list[Image.Image] = []
    job = video_job(reference_mode="start", frames=frames, steps=5, denoise_strength=1.0)
    both.generate(
        job,
        references=references,
        on_step=lambda *_: None,
        on_preview=lambda take: looks.append(take()()),
    )
    assert [look.size for look in looks] == [(128, 128)] * 4
    assert len({look.tobytes() for look in looks}) == 4


def test_a_job_without_references_is_not_vace_s(wan: WanPipeline, both: WanPipeline) -> None:
    """Text alone is what the other checkpoint is for, and its clips must not change."""
    made = both.generate(video_job(), on_step=lambda *_: None)
    assert "reference_backend" not in made.metadata
    assert far(clip(both, video_job()), clip(wan, video_job())) <= LEVELS


@pytest.mark.parametrize("mode", ["single", "start", "both"])
def test_the_first_frame_is_pinned(both: WanPipeline, references: ReferenceImages, mode: str) -> None:
    """A mask of one frame leaves no trace at the size of the latents: VACE alone would only be near it."""
    made = clip(both, video_job(reference_mode=mode, steps=3), references)
    assert far(made[0], round_trip(both, references.start, 32).astype(int)) <= LEVELS


@pytest.mark.parametrize("mode", MODES)
def test_at_full_strength_the_prompt_alone_decides(
    wan: WanPipeline, both: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """Then VACE's blocks are not heard either: its others are those of the checkpoint for text here."""
    job = video_job(reference_mode=mode, denoise_strength=1.0)
    assert far(clip(both, job, references), clip(wan, video_job())) <= LEVELS


def test_vace_whose_blocks_add_nothing_is_the_checkpoint_for_text(
    trained: WanPipeline, references: ReferenceImages
) -> None:
    """The same weights in the other class: to the last bit of the same steering."""
    plain = WanPipeline(find_wan(None), cap=64)
    for mode in MODES:
        job = video_job(reference_mode=mode, prompt="a red circle", width=64, height=64, frames=9, steps=2)
        assert far(clip(trained, job, references), clip(plain, job, references)) <= 1, mode


def test_references_steer_the_trained_checkpoint_through_vace(
    trained: WanPipeline, references: ReferenceImages
) -> None:
    """A start is met, an end is come nearer to, a single picture keeps the whole clip near."""
    shape = {"prompt": "a red star moving right", "width": 64, "height": 64, "frames": 9, "steps": 8}
    text = clip(trained, video_job(**shape))
    made = {mode: clip(trained, video_job(reference_mode=mode, **shape), references) for mode in MODES}
    start, end = (np.asarray(fitted_image(picture)) for picture in (references.start, references.end))
    expected = round_trip(trained, references.start, 64)
    for mode in ("start", "both", "single"):
        assert decibel(made[mode][0], expected) >= 30, mode
    for mode in ("end", "both"):
        assert decibel(made[mode][-1], end) >= decibel(text[-1], end) + 3, mode
    still = np.stack([start] * 9)
    assert decibel(made["single"], still) > decibel(text, still)


def fitted_image(picture: Image.Image) -> Image.Image:
    return picture.resize((64, 64), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("mode", MODES)
def test_more_strength_never_brings_the_clip_closer(trained: WanPipeline, mode: str) -> None:
    """From the reference to what the prompt alone makes; a frame that was let go is its own."""
    red = Image.new("RGB", (64, 64), "green")
    red.paste("red", (20, 20, 44, 44))
    references = ReferenceImages(single=red, start=red, end=red)
    shape = {"prompt": "a blue square on white", "width": 64, "height": 64, "frames": 9, "steps": 6}
    nearness = [
        decibel(
            clip(trained, video_job(reference_mode=mode, denoise_strength=strength, **shape), references)[
                -1 if mode == "end" else 0
            ],
            np.asarray(red),
        )
        for strength in (0.0, 0.8, 1.0)
    ]
    assert all(less <= more + 0.2 for more, less in pairwise(nearness)), nearness
    assert nearness[0] > nearness[-1] + 3


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_moves_away_from_its_reference_with_the_strength(
    trained: WanPipeline, references: ReferenceImages, mode: str
) -> None:
    """One frame is SDEdit, and VACE is heard the less the more may change."""
    aim = np.asarray(fitted_image(references.end if mode == "end" else references.start))
    nearness = [
        decibel(
            clip(
                trained,
                video_job(
                    reference_mode=mode, denoise_strength=strength, width=64, height=64, frames=1, steps=12
                ),
                references,
            )[0],
            aim,
        )
        for strength in (0.1, 0.4, 0.9)
    ]
    assert nearness == sorted(nearness, reverse=True)


def test_a_clip_from_a_clip_is_the_one_that_diffusers_makes(alone: WanPipeline) -> None:
    """Frames, masks and pictures mean the same as in the library that the weights come with."""
    frames = {at: noise_picture(at) for at in range(9)}
    masks = {
        at: Image.fromarray(np.pad(np.full((32, 16), 255, np.uint8), ((0, 0), (0, 16)))) for at in range(9)
    }
    masks[0] = Image.new("L", (32, 32), 0)
    picture = noise_picture(50)
    job = video_job(frames=9, steps=3, guidance_scale=4.0)
    ours = clip(alone, job, source=SourceVideo(frames, masks, (picture,)))
    pipe = alone.components.pipe
    theirs = diffusers.WanVACEPipeline(**{name: part for name, part in pipe.components.items() if part})
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.UniPCMultistepScheduler.from_config(theirs.scheduler.config, flow_shift=5.0)
    words = alone.encode(job)
    expected = theirs(
        video=list(frames.values()),
        mask=[mask.convert("RGB") for mask in masks.values()],
        reference_images=[picture],
        prompt_embeds=words.prompt,
        negative_prompt_embeds=words.negative,
        width=32,
        height=32,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    assert far(ours, np.round(expected * 255).astype(int)) <= 1


def test_a_source_is_said_to_have_been_followed(alone: WanPipeline) -> None:
    """And without one, the further blocks are told that everything is to be made."""
    source = SourceVideo({0: noise_picture(1)})
    made = alone.generate(video_job(frames=2), source=source, on_step=lambda *_: None)
    assert (made.metadata["reference_backend"], len(made.frames)) == ("vace", 2)
    assert "reference_backend" not in alone.generate(video_job(), on_step=lambda *_: None).metadata


def test_a_cancelled_job_stops_before_the_next_step(both: WanPipeline, references: ReferenceImages) -> None:
    """As on the other checkpoint."""
    heard: list[int] = []

    def on_step(done: int, total: int) -> None:
        heard.append(done)
        if done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        both.generate(video_job(reference_mode="start", steps=5), references=references, on_step=on_step)
    assert heard == [0, 1, 2]


def test_what_is_equal_in_both_checkpoints_lies_in_memory_once(
    wan: WanPipeline, both: WanPipeline, vace_folder: Path
) -> None:
    """VACE of 1.3B holds the other's weights again: 2.8 GB in half precision."""
    text, vace = both.components.pipe.transformer, both.components.vace.transformer
    assert vace.blocks[0].attn1.to_q.weight is text.blocks[0].attn1.to_q.weight
    assert both.components.vace.text_encoder is both.components.pipe.text_encoder
    further = sum(weight.nbytes for weight in vace.parameters()) - sum(w.nbytes for w in text.parameters())
    assert both.info()["memory_mib"] == pytest.approx(wan.info()["memory_mib"] + further / 2**20, abs=1)
    assert (both.info()["model"], both.info()["vace"]) == ("t2v", "tiny-vace")


def test_unloading_lets_go_of_both(wan_checkpoint: Checkpoint, vace_folder: Path) -> None:
    """And loading brings both back."""
    wan = WanPipeline(wan_checkpoint, vace=find_wan(vace_folder))
    wan.load()
    held = weakref.ref(wan.components.vace.transformer)
    wan.unload()
    gc.collect()
    assert held() is None
    assert wan.info()["memory_mib"] == 0
    wan.load()
    assert wan.components.vace is not None


def test_vace_that_cannot_be_loaded_is_a_load_error_and_nothing_is_warm(
    wan_checkpoint: Checkpoint, vace_folder: Path, tmp_path: Path
) -> None:
    """A worker that was told to have it must not start and make other clips."""
    torn = copytree(vace_folder, tmp_path / "torn")
    (torn / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"half a download")
    wan = WanPipeline(wan_checkpoint, vace=find_wan(torn))
    with pytest.raises(ModelLoadError, match="torn could not be loaded"):
        wan.load()
    assert wan.info()["loaded"] is False
    with pytest.raises(ModelLoadError):
        wan.load()


def test_vace_of_another_family_is_refused(
    wan_checkpoint: Checkpoint, vace_folder: Path, tmp_path: Path
) -> None:
    """They share the text encoder and the VAE; a transformer for others would fail with its first job."""
    other = copytree(vace_folder, tmp_path / "other")
    wan = WanPipeline(find_wan(None), vace=find_wan(other))
    assert json.loads((other / "transformer/config.json").read_text())["text_dim"] == 32
    with pytest.raises(ModelLoadError, match=r"text_dim 32.*do not belong together"):
        wan.load()
