"""The trained tiny-sdxl paints what it is asked for: read from the pixels, through the serving pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from training.recognition import INSIDE, RecognizedScene, oklab, recognize_scene, segment
from training.scenes import Pixels, Scene
from training.sdxl.evaluate import held_out_captions

TYPE = "sdxl_image_fast"
SEED = 7
CAPTIONS = 24
STARS_AMONG = 24
"""Captions of which the stars are tried without guidance and with it."""
SMALL = 10
"""Captions that are tried at half the native size."""
BATCH = 6

pytestmark = pytest.mark.timeout(600)
"""Half a minute on two idle cores; several times that where others compute too."""

LEAST = {"background": 0.90, "colour": 0.85, "shape": 0.70, "position": 0.80}
CHANCE_AT_MOST = {"background": 0.25, "colour": 0.25, "shape": 0.35, "position": 0.40}
"""Of ten, ten, seven and five, with room for few pictures."""
OPEN = ("a circle on a white background", "a square on a white background")
"""Captions that leave the colour to the model."""

Generate = Callable[..., list[Pixels]]
CaptionedScenes = list[tuple[Scene, str]]


@pytest.fixture(scope="module")
def generate(trained: Callable[[str], Path]) -> Generate:
    """Makes the pictures of one prompt, by default one, with the numbers of the type and the native size."""
    pipeline = SDXLPipeline(Checkpoint(trained("tiny-sdxl"), "tiny"))
    pipeline.load()
    return partial(generate_with, pipeline)


def generate_with(
    pipeline: SDXLPipeline, prompt: str, *, seed: int, size_px: int = 0, **changed: object
) -> list[Pixels]:
    row = CATALOG[TYPE]
    edge = size_px or pipeline.info()["native_size"]
    fields = {
        "steps": row.steps,
        "guidance_scale": row.guidance_scale,
        "width": edge,
        "height": edge,
    } | changed
    job = ImageJob(id="job-1", type=TYPE, expected_time=30, prompt=prompt, seed=seed, **fields)
    return [np.asarray(image) for image in pipeline.generate(job, on_step=lambda *_: None).images]


@pytest.fixture(scope="module")
def captioned() -> CaptionedScenes:
    """Scenes of combinations that no training picture had, and their captions."""
    return held_out_captions(CAPTIONS, seed=SEED)


@pytest.fixture(scope="module")
def recognized(generate: Generate, captioned: CaptionedScenes) -> list[RecognizedScene]:
    """What the picture of every caption shows."""
    return seen(generate, captioned)


def seen(generate: Generate, captioned: CaptionedScenes, **changed: object) -> list[RecognizedScene]:
    return [
        recognize_scene(generate(text, seed=1000 + k, **changed)[0]) for k, (_, text) in enumerate(captioned)
    ]


def share(name: str, pictures: Sequence[RecognizedScene], scenes: Sequence[Scene]) -> float:
    """How many pictures show what their scenes have."""
    pairs = list(zip(pictures, scenes, strict=True))
    return sum(getattr(one, name) == getattr(scene, name) for one, scene in pairs) / len(pairs)


@pytest.mark.parametrize("name", LEAST)
def test_a_picture_shows_what_its_caption_says(
    recognized: list[RecognizedScene], captioned: CaptionedScenes, name: str
) -> None:
    """The whole point: words become the picture they mean, in combinations it was never trained on."""
    assert share(name, recognized, [scene for scene, _ in captioned]) >= LEAST[name]


@pytest.mark.parametrize("name", LEAST)
def test_a_picture_does_not_show_what_another_caption_says(
    recognized: list[RecognizedScene], captioned: CaptionedScenes, name: str
) -> None:
    """Each picture is its own caption's: measured against every other one, the score is chance."""
    scenes = [scene for scene, _ in captioned]
    others = [share(name, recognized, scenes[k:] + scenes[:k]) for k in range(1, len(scenes))]
    assert float(np.mean(others)) <= CHANCE_AT_MOST[name]


def test_without_the_prompt_nothing_is_right_but_by_chance(
    generate: Generate, captioned: CaptionedScenes
) -> None:
    """What is measured comes from the words: neither the seed nor the evaluator knows the scene."""
    scenes = [scene for scene, _ in captioned]
    pictures = [recognize_scene(one) for one in generate("", seed=1000, num_images=BATCH)]
    shown = {
        name: float(np.mean([share(name, [one] * len(scenes), scenes) for one in pictures])) for name in LEAST
    }
    assert {name: value for name, value in shown.items() if value > CHANCE_AT_MOST[name]} == {}


def test_guidance_makes_the_picture_follow_the_prompt(generate: Generate) -> None:
    """Guidance 1 runs the model on the prompt alone; the default pulls away from everything else as well. It
    shows in stars, the shape that takes most."""
    stars = [
        (scene, text) for scene, text in held_out_captions(STARS_AMONG, seed=SEED) if scene.shape == "star"
    ]
    scenes = [scene for scene, _ in stars]
    weak, strong = (
        share("shape", seen(generate, stars, **how), scenes) for how in ({"guidance_scale": 1.0}, {})
    )
    assert strong >= weak + 0.15


def test_a_negative_red_takes_the_red_away(generate: Generate) -> None:
    """With equal seeds, a word in the negative prompt moves the pictures away from what it means."""
    plain, without = (
        [
            picture
            for k, caption in enumerate(OPEN)
            for picture in generate(caption, seed=5000 + 1000 * k, num_images=BATCH, negative_prompt=negative)
        ]
        for negative in (None, "red")
    )
    before, after = ([segment(one)[1] for one in pictures].count("red") for pictures in (plain, without))
    assert after <= before / 2
    assert redness(without) < redness(plain) - 0.03


def redness(pictures: Sequence[Pixels]) -> float:
    """Mean Oklab `a` of the shapes, from green (-0.15) over grey (0) to red (0.2)."""
    return float(np.mean([oklab(one[segment(one)[2] >= INSIDE])[:, 1].mean() for one in pictures]))


def test_at_half_its_native_size_the_colours_are_right(
    generate: Generate, captioned: CaptionedScenes
) -> None:
    """A caller who asks for 64 px gets a small picture of the same thing."""
    pictures = [generate(text, seed=1000 + k, size_px=64)[0] for k, (_, text) in enumerate(captioned[:SMALL])]
    expected = [(scene.background, scene.colour) for scene, _ in captioned[:SMALL]]
    shown = [segment(one)[:2] for one in pictures]
    for which in (0, 1):
        right = [one[which] == other[which] for one, other in zip(shown, expected, strict=True)]
        assert np.mean(right) >= 0.75, (shown, expected)
