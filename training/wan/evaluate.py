"""Evaluation of an exported folder with the pipeline that serves it."""

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
from training.plots import grid
from training.recognition import recognize_clip
from training.scenes import Clip, random_clip
from training.sdxl.evaluate import Report
from training.wan.models import NATIVE_FRAMES, NATIVE_PX
from training.wan.vae import reconstruction_db

STAGE = 16
TYPE = "video_fast"
MEASURED = ("background", "colour", "motion")
SHEET_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Scores:
    """Proportions of clips with the requested attributes, 0 to 1, and the median time of one in seconds."""

    clips: int
    frames: int
    background: float
    colour: float
    motion: float
    seconds: float


def open_pipeline(folder: Path) -> WanPipeline:
    """The pipeline of the tiny profile, loaded from an exported folder."""
    pipeline = WanPipeline(Checkpoint(folder, "tiny"))
    pipeline.load()
    return pipeline


def held_out_captions(count: int, *, seed: int) -> list[tuple[Clip, str]]:
    """Held-out clips with captions that name every measured attribute."""
    generators = (np.random.default_rng((seed, STAGE, k)) for k in range(count))
    return [
        (clip, clip_caption(clip, rng, complete=True))
        for rng, clip in ((rng, random_clip(rng, held_out=True)) for rng in generators)
    ]


def video_job(prompt: str, *, seed: int, frames: int = NATIVE_FRAMES, **options: Any) -> VideoJob:
    """A fast video job of native size; `options` are fields of the job."""
    row = CATALOG[TYPE]
    defaults = {
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
        **(defaults | options),
    )


def clip_frames(pipeline: WanPipeline, prompt: str, *, seed: int, **options: Any) -> list[Image]:
    """The frames of one generated clip; `options` are fields of the job."""
    job = video_job(prompt, seed=seed, **options)
    return list(pipeline.generate(job, on_step=lambda _done, _total: None).frames)


def score(
    pipeline: WanPipeline,
    captions: Sequence[tuple[Clip, str]],
    *,
    with_prompt: bool = True,
    **options: Any,
) -> Scores:
    """The scores of one clip per caption; without `with_prompt` the prompts are empty."""
    correct = dict.fromkeys(MEASURED, 0)
    seconds = []
    for index, (clip, text) in enumerate(captions):
        started = time.perf_counter()
        images = clip_frames(pipeline, text if with_prompt else "", seed=2000 + index, **options)
        seconds.append(time.perf_counter() - started)
        recognized = recognize_clip([np.asarray(image) for image in images])
        for name in MEASURED:
            correct[name] += getattr(recognized, name) == getattr(clip, name)
    shares = {name: count / len(captions) for name, count in correct.items()}
    frames = int(options.get("frames", NATIVE_FRAMES))
    return Scores(clips=len(captions), frames=frames, **shares, seconds=float(np.median(seconds)))


def evaluate(folder: Path, *, count: int, reconstructed: int, seed: int, report: Report) -> dict[str, Any]:
    """All measures of the model card by name, on `count` held-out captions and `reconstructed` clips."""
    pipeline = open_pipeline(folder)
    captions = held_out_captions(count, seed=seed)
    fewer = captions[: max(count // 4, 1)]
    clip_frames(pipeline, "warm up", seed=1)
    results: dict[str, Any] = {"load_seconds": pipeline.load_s}
    for name, subset, options in (
        ("held out", captions, {}),
        ("without the prompt", fewer, {"with_prompt": False}),
        ("guidance 1", fewer, {"guidance_scale": 1.0}),
        ("9 frames", fewer, {"frames": 9}),
        ("33 frames", fewer, {"frames": 33}),
        ("83 frames", captions[:3], {"frames": 83}),
    ):
        scores = score(pipeline, subset, **options)
        report(f"{name}: {scores}")
        results[name] = asdict(scores)
    vae = diffusers.AutoencoderKLWan.from_pretrained(folder / "vae").float()
    results["vae round trip dB"] = reconstruction_db(vae, seed=seed, count=reconstructed)
    report(f"vae round trip: {results['vae round trip dB']:.1f} dB")
    return results


def contact_sheet(folder: Path, *, count: int, seed: int) -> Image:
    """Rows of frames of clips for the first held-out captions."""
    pipeline = open_pipeline(folder)
    images: list[Image] = []
    labels: list[str] = []
    for index, (_, text) in enumerate(held_out_captions(count, seed=seed)):
        frames = clip_frames(pipeline, text, seed=2000 + index)
        row = [frames[round(k)] for k in np.linspace(0, len(frames) - 1, SHEET_FRAMES)]
        images += row
        labels += [text, *[""] * (len(row) - 1)]
    return grid(images, labels, columns=SHEET_FRAMES)
