"""The last stage: what the exported folder does, measured through the pipeline that serves it."""

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
from training.evaluator import look
from training.sdxl.models import NATIVE_PX
from training.world import Scene, random_scene

STAGE = 6
TYPE = "sdxl_image_fast"
MEASURED = ("background", "colour", "shape", "position")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of pictures that show what was asked for, 0 to 1, and how long one takes (median, seconds)."""

    pictures: int
    background: float
    colour: float
    shape: float
    position: float
    seconds: float


def open_pipeline(folder: Path) -> SDXLPipeline:
    """The exported folder as the tiny profile loads it."""
    pipeline = SDXLPipeline(Checkpoint(folder, "tiny"))
    pipeline.load()
    return pipeline


def held_out_captions(count: int, *, seed: int) -> list[tuple[Scene, str]]:
    """Scenes of combinations that no training picture had, with captions that tell all that is measured."""
    draws = (np.random.default_rng((seed, STAGE, k)) for k in range(count))
    return [
        (scene, caption(scene, draw, complete=True))
        for draw, scene in ((draw, random_scene(draw, held_out=True)) for draw in draws)
    ]


def picture(
    pipeline: SDXLPipeline,
    prompt: str,
    *,
    seed: int,
    guidance: float | None = None,
    negative: str | None = None,
    size_px: int = NATIVE_PX,
) -> Image:
    """One picture at the default steps and guidance of the fast image job."""
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
    pipeline: SDXLPipeline, asked: Sequence[tuple[Scene, str]], *, told: bool = True, **options: Any
) -> Scores:
    """How often the pictures show what was asked for; with `told` off the prompt is kept back."""
    right = dict.fromkeys(MEASURED, 0)
    seconds = []
    for index, (scene, text) in enumerate(asked):
        started = time.perf_counter()
        made = picture(pipeline, text if told else "", seed=1000 + index, **options)
        seconds.append(time.perf_counter() - started)
        seen = look(np.asarray(made))
        for name in MEASURED:
            right[name] += getattr(seen, name) == getattr(scene, name)
    shares = {name: count / len(asked) for name, count in right.items()}
    return Scores(pictures=len(asked), **shares, seconds=float(np.median(seconds)))


def colour_share(pipeline: SDXLPipeline, colour: str, *, negative: str | None, count: int) -> float:
    """How often a shape whose colour the caption leaves open comes out in `colour`."""
    shapes = ("circle", "square", "triangle", "star")
    found = 0
    for k in range(count):
        prompt = f"a {shapes[k % len(shapes)]} on a white background"
        made = picture(pipeline, prompt, seed=5000 + k, negative=negative)
        found += look(np.asarray(made)).colour == colour
    return found / count


def evaluate(folder: Path, *, count: int, seed: int, tell: Tell) -> dict[str, Any]:
    """Every measure of the model card, by name."""
    pipeline = open_pipeline(folder)
    asked = held_out_captions(count, seed=seed)
    some = asked[: max(count // 3, 1)]
    picture(pipeline, "warm up", seed=1)
    found: dict[str, Any] = {"load_seconds": pipeline.load_s}
    for name, captions, options in (
        ("held out", asked, {}),
        ("without the prompt", some, {"told": False}),
        ("guidance 1", some, {"guidance": 1.0}),
        ("guidance 5", some, {"guidance": 5.0}),
        ("64 px", some, {"size_px": 64}),
    ):
        scores = score(pipeline, captions, **options)
        tell(f"{name}: {scores}")
        found[name] = asdict(scores)
    for negative in (None, "red"):
        found[f"red with negative {negative!r}"] = colour_share(
            pipeline, "red", negative=negative, count=max(count // 5, 4)
        )
        tell(f"red with negative {negative!r}: {found[f'red with negative {negative!r}']:.0%}")
    return found
