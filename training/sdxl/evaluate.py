"""Evaluation of an exported folder with the pipeline that serves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from training.captions import caption
from training.recognition import recognize_scene
from training.scenes import Scene, random_scene
from training.sdxl.models import NATIVE_PX

STAGE = 6
TYPE = "sdxl_image_fast"
MEASURED = ("background", "colour", "shape", "position")

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """Proportions of images with the requested attributes, 0 to 1, and the median time of one in seconds."""

    pictures: int
    background: float
    colour: float
    shape: float
    position: float
    seconds: float


def open_pipeline(folder: Path) -> SDXLPipeline:
    """The pipeline of the tiny profile, loaded from an exported folder."""
    pipeline = SDXLPipeline(Checkpoint(folder, "tiny"))
    pipeline.load()
    return pipeline


def held_out_captions(count: int, *, seed: int) -> list[tuple[Scene, str]]:
    """Held-out scenes with captions that name every measured attribute."""
    generators = (np.random.default_rng((seed, STAGE, k)) for k in range(count))
    return [
        (scene, caption(scene, rng, complete=True))
        for rng, scene in ((rng, random_scene(rng, held_out=True)) for rng in generators)
    ]


def generate(
    pipeline: SDXLPipeline,
    prompt: str,
    *,
    seed: int,
    guidance: float | None = None,
    negative: str | None = None,
    size_px: int = NATIVE_PX,
) -> Image:
    """One image with the steps and guidance of the fast image job, unless `guidance` is given."""
    row = CATALOG[TYPE]
    assert row.steps is not None
    assert row.guidance_scale is not None
    job = ImageJob(
        id=f"evaluation-{seed}",
        type=TYPE,
        expected_time=30,
        prompt=prompt,
        negative_prompt=negative,
        steps=row.steps,
        guidance_scale=row.guidance_scale if guidance is None else guidance,
        width=size_px,
        height=size_px,
        seed=seed,
    )
    return pipeline.generate(job, on_step=lambda _done, _total: None).images[0]


def score(
    pipeline: SDXLPipeline,
    captions: Sequence[tuple[Scene, str]],
    *,
    with_prompt: bool = True,
    **options: Any,
) -> Scores:
    """The scores of one image per caption; without `with_prompt` the prompts are empty."""
    correct = dict.fromkeys(MEASURED, 0)
    seconds = []
    for index, (scene, text) in enumerate(captions):
        started = time.perf_counter()
        image = generate(pipeline, text if with_prompt else "", seed=1000 + index, **options)
        seconds.append(time.perf_counter() - started)
        recognized = recognize_scene(np.asarray(image))
        for name in MEASURED:
            correct[name] += getattr(recognized, name) == getattr(scene, name)
    shares = {name: count / len(captions) for name, count in correct.items()}
    return Scores(pictures=len(captions), **shares, seconds=float(np.median(seconds)))


def colour_share(pipeline: SDXLPipeline, colour: str, *, negative: str | None, count: int) -> float:
    """The proportion of images with a shape of `colour`, for `count` captions that name no colour."""
    shapes = ("circle", "square", "triangle", "star")
    matches = 0
    for k in range(count):
        prompt = f"a {shapes[k % len(shapes)]} on a white background"
        image = generate(pipeline, prompt, seed=5000 + k, negative=negative)
        matches += recognize_scene(np.asarray(image)).colour == colour
    return matches / count


def evaluate(folder: Path, *, count: int, seed: int, report: Report) -> dict[str, Any]:
    """All measures of the model card by name, on `count` held-out captions."""
    pipeline = open_pipeline(folder)
    captions = held_out_captions(count, seed=seed)
    fewer = captions[: max(count // 3, 1)]
    generate(pipeline, "warm up", seed=1)
    results: dict[str, Any] = {"load_seconds": pipeline.load_s}
    for name, subset, options in (
        ("held out", captions, {}),
        ("without the prompt", fewer, {"with_prompt": False}),
        ("guidance 1", fewer, {"guidance": 1.0}),
        ("guidance 5", fewer, {"guidance": 5.0}),
        ("64 px", fewer, {"size_px": 64}),
    ):
        scores = score(pipeline, subset, **options)
        report(f"{name}: {scores}")
        results[name] = asdict(scores)
    for negative in (None, "red"):
        results[f"red with negative {negative!r}"] = colour_share(
            pipeline, "red", negative=negative, count=max(count // 5, 4)
        )
        report(f"red with negative {negative!r}: {results[f'red with negative {negative!r}']:.0%}")
    return results
