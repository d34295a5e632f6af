"""The last stage: what the exported folder does, measured through the pipeline that serves it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from PIL.Image import Image

from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.pipeline import WanPipeline
from training.captions import clip_caption
from training.drawing import grid
from training.evaluator import watch
from training.sdxl.evaluate import Tell
from training.wan.models import NATIVE_FRAMES, NATIVE_PX
from training.wan.vae import round_trip_db
from training.world import Clip, random_clip

STAGE = 16
TYPE = "video_fast"
MEASURED = ("background", "colour", "motion")
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of clips that show what was asked for, 0 to 1, and how long one takes (median, seconds)."""

    clips: int
    frames: int
    background: float
    colour: float
    motion: float
    seconds: float


def open_pipeline(folder: Path) -> WanPipeline:
    """The exported folder as the tiny profile loads it."""
    pipeline = WanPipeline(Checkpoint(folder, "tiny"))
    pipeline.load()
    return pipeline


def held_out_captions(count: int, *, seed: int) -> list[tuple[Clip, str]]:
    """Clips of combinations that no training clip had, with captions that tell all that is measured."""
    draws = (np.random.default_rng((seed, STAGE, k)) for k in range(count))
    return [
        (clip, clip_caption(clip, draw, complete=True))
        for draw, clip in ((draw, random_clip(draw, held_out=True)) for draw in draws)
    ]


def asked_clip(prompt: str, *, seed: int, frames: int = NATIVE_FRAMES, **changed: Any) -> VideoJob:
    """A fast video job of native size, at the steps and guidance of its type."""
    row = CATALOG[TYPE]
    asked = {
        "steps": row.steps,
        "guidance_scale": row.guidance_scale,
        "width": NATIVE_PX,
        "height": NATIVE_PX,
    }
    return VideoJob(
        id=f"evaluation-{seed}",
        type=TYPE,
        expected_time=180,
        prompt=prompt,
        frames=frames,
        seed=seed,
        **(asked | changed),
    )


def clip_frames(pipeline: WanPipeline, prompt: str, *, seed: int, **changed: Any) -> list[Image]:
    """The frames of one clip."""
    job = asked_clip(prompt, seed=seed, **changed)
    return list(pipeline.generate(job, on_step=lambda _done, _total: None).frames)


def score(
    pipeline: WanPipeline, asked: Sequence[tuple[Clip, str]], *, told: bool = True, **changed: Any
) -> Scores:
    """How often the clips show what was asked for; with `told` off the prompt is kept back."""
    right = dict.fromkeys(MEASURED, 0)
    seconds = []
    for index, (clip, text) in enumerate(asked):
        started = time.perf_counter()
        made = clip_frames(pipeline, text if told else "", seed=2000 + index, **changed)
        seconds.append(time.perf_counter() - started)
        seen = watch([np.asarray(frame) for frame in made])
        for name in MEASURED:
            right[name] += getattr(seen, name) == getattr(clip, name)
    shares = {name: count / len(asked) for name, count in right.items()}
    frames = int(changed.get("frames", NATIVE_FRAMES))
    return Scores(clips=len(asked), frames=frames, **shares, seconds=float(np.median(seconds)))


def evaluate(folder: Path, *, count: int, seed: int, tell: Tell) -> dict[str, Any]:
    """Every measure of the model card, by name."""
    pipeline = open_pipeline(folder)
    asked = held_out_captions(count, seed=seed)
    some = asked[: max(count // 4, 1)]
    clip_frames(pipeline, "warm up", seed=1)
    found: dict[str, Any] = {"load_seconds": pipeline.load_s}
    for name, captions, options in (
        ("held out", asked, {}),
        ("without the prompt", some, {"told": False}),
        ("guidance 1", some, {"guidance_scale": 1.0}),
        ("9 frames", some, {"frames": 9}),
        ("33 frames", some, {"frames": 33}),
        ("83 frames", asked[:3], {"frames": 83}),
    ):
        scores = score(pipeline, captions, **options)
        tell(f"{name}: {scores}")
        found[name] = asdict(scores)
    vae = diffusers.AutoencoderKLWan.from_pretrained(folder / "vae").float()
    found["vae round trip dB"] = round_trip_db(vae, seed=seed)
    tell(f"vae round trip: {found['vae round trip dB']:.1f} dB")
    return found


def sheet(folder: Path, *, count: int, seed: int) -> Image:
    """A row of frames for each of the first held-out captions."""
    pipeline = open_pipeline(folder)
    pictures: list[Image] = []
    captions: list[str] = []
    for index, (_, text) in enumerate(held_out_captions(count, seed=seed)):
        made = clip_frames(pipeline, text, seed=2000 + index)
        shown = [made[round(k)] for k in np.linspace(0, len(made) - 1, SHOWN)]
        pictures += shown
        captions += [text, *[""] * (len(shown) - 1)]
    return grid(pictures, captions, columns=SHOWN)
