"""Effects of references, prompt weights and long prompts on images of the trained tiny-sdxl."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from training.recognition import recognize_scene
from training.scenes import COLOURS, Pixels, random_scene, render

EDGE_PX = 128
REFERENCES = 3
HELD_OUT = 8
LEVELS = 2
"""How far the 8-bit levels of two equal pictures may lie apart: batches round differently."""

Generate = Callable[..., list[Pixels]]
Decibels = Callable[[Pixels | Image.Image, Pixels | Image.Image], float]


@pytest.fixture(scope="module")
def sdxl(trained: Callable[[str], Path]) -> SDXLPipeline:
    """The loaded pipeline of the trained checkpoint."""
    pipeline = SDXLPipeline(Checkpoint(trained("tiny-sdxl"), "tiny"))
    pipeline.load()
    return pipeline


@pytest.fixture(scope="module")
def generate(sdxl: SDXLPipeline) -> Generate:
    """Returns a function that generates images of one prompt, optionally from a reference."""

    def pictures(prompt: str, reference: Image.Image | None = None, **changed: object) -> list[Pixels]:
        fields = {
            "steps": 15,
            "guidance_scale": 6.0,
            "width": EDGE_PX,
            "height": EDGE_PX,
            "seed": 7,
            "reference": None if reference is None else "u/p.png",
        } | changed
        job = ImageJob(id="job-1", type="sdxl_image_fast", expected_time=30, prompt=prompt, **fields)
        made = sdxl.generate(job, reference=reference, on_step=lambda *_: None)
        return [np.asarray(image) for image in made.images]

    return pictures


@pytest.fixture(scope="module")
def references() -> list[Image.Image]:
    """Rendered images of shapes."""
    draw = np.random.default_rng(3)
    scenes = [random_scene(draw, held_out=False) for _ in range(REFERENCES)]
    return [Image.fromarray(render(scene, EDGE_PX, EDGE_PX)) for scene in scenes]


@pytest.fixture(scope="module")
def copied_pictures(references: list[Image.Image], generate: Generate) -> list[Image.Image]:
    """The references, some with held-out combinations, and one image that the model generated."""
    draw = np.random.default_rng(1234)
    scenes = [random_scene(draw, held_out=True) for _ in range(HELD_OUT)]
    drawn = [Image.fromarray(render(scene, EDGE_PX, EDGE_PX)) for scene in scenes]
    return [*references, *drawn, Image.fromarray(generate("a big green star on a pink background")[0])]


def copied(denoise: float) -> dict[str, object]:
    """The parameters of an exact copy that are set at submission."""
    steps = round(6 + 4 * denoise / 0.05)
    return {"exact_copy_mode": True, "guidance_scale": 1.0, "denoise_strength": denoise, "steps": steps}


def test_a_lower_strength_gives_an_image_closer_to_the_reference(
    generate: Generate, references: list[Image.Image], decibels: Decibels
) -> None:
    """The default strength 0.15 is at least 1 dB closer than 0.6."""
    for reference in references:
        near, far = (
            generate("a blue star on a white background", reference, denoise_strength=strength)[0]
            for strength in (0.15, 0.6)
        )
        assert decibels(near, reference) > decibels(far, reference) + 1


def test_a_high_strength_follows_the_prompt(generate: Generate, references: list[Image.Image]) -> None:
    """At 0.9 the image shows the prompt and hardly anything of the reference."""
    recognized = [
        recognize_scene(generate("a blue star on a white background", one, denoise_strength=0.9)[0])
        for one in references
    ]
    assert [(one.colour, one.background) for one in recognized] == [("blue", "white")] * REFERENCES


@pytest.mark.parametrize("denoise", [0.05, 0.02, 0.001])
def test_an_exact_copy_is_close_to_the_vae_reconstruction(
    sdxl: SDXLPipeline,
    generate: Generate,
    copied_pictures: list[Image.Image],
    decibels: Decibels,
    denoise: float,
) -> None:
    """The steps add little to the loss of the VAE, at every strength of exact copies."""
    codec = sdxl._model.vae
    for reference in copied_pictures:
        best = decibels(codec.decode(codec.encode(reference)), reference)
        assert decibels(generate("", reference, **copied(denoise))[0], reference) > best - 1.5


def test_a_lower_strength_gives_a_closer_copy(
    generate: Generate, references: list[Image.Image], decibels: Decibels
) -> None:
    """The strength of exact copies has an effect."""
    near, far = (
        np.mean([decibels(generate("", one, **copied(denoise))[0], one) for one in references])
        for denoise in (0.005, 0.05)
    )
    assert near > far + 0.2


def test_an_exact_copy_is_closer_than_the_smallest_modification(
    generate: Generate, references: list[Image.Image], decibels: Decibels
) -> None:
    """It has at least 35 dB, where differences are not visible, and 6 dB more than a modification."""
    for reference in references:
        copy = decibels(generate("", reference, **copied(0.05))[0], reference)
        changed = generate("a blue star on a white background", reference, denoise_strength=0.15)[0]
        assert copy > max(35, decibels(changed, reference) + 6)


def test_an_exact_copy_without_strength_is_the_reference(
    generate: Generate, references: list[Image.Image]
) -> None:
    """All pixels are equal, since neither the UNet nor the VAE runs."""
    made = generate("", references[0], **copied(0.0))[0]
    assert (made == np.asarray(references[0])).all()


def test_each_image_of_a_batch_from_a_reference_equals_its_single_image(
    generate: Generate, references: list[Image.Image]
) -> None:
    """Callers pick one image of a batch and request it again by its seed."""
    fields = {"denoise_strength": 0.5, "steps": 8}
    batch = generate("a red circle", references[0], num_images=3, **fields)
    for k in (0, 2):
        alone = generate("a red circle", references[0], seed=7 + k, **fields)[0]
        assert np.abs(batch[k].astype(int) - alone).max() <= LEVELS
    assert np.abs(batch[0].astype(int) - batch[2]).max() > 20


@pytest.mark.parametrize("other", ["blue", "green"])
def test_a_higher_weight_on_red_gives_a_redder_image(generate: Generate, other: str) -> None:
    """Of two colours in a prompt the weighted one becomes stronger with its weight.

    The redness may decrease by 0.02: the level of a completely red circle varies by about 0.01.
    """
    redness = []
    for weight in (0.4, 0.8, 1.2, 1.6):
        prompt = f"a (red:{weight}) {other} circle on a white background"
        middle = generate(prompt, compel_enabled=True)[0][56:72, 56:72].reshape(-1, 3).mean(axis=0)
        toward = np.subtract(COLOURS["red"], COLOURS[other])
        redness.append(float((middle - COLOURS[other]) @ toward / (toward @ toward)))
    assert all(later > earlier - 0.02 for earlier, later in pairwise(redness))
    assert redness[0] < 0.3
    assert redness[-1] > 0.8


@pytest.mark.parametrize("colour", ["red", "blue", "purple", "green", "orange"])
def test_the_last_words_of_a_long_prompt_have_an_effect(
    sdxl: SDXLPipeline, generate: Generate, colour: str
) -> None:
    """Text encoders read 77 tokens, so long prompts are encoded in chunks.

    The last words begin the fourth chunk, since this small model confuses colours in the middle of a chunk.
    """
    prompt = "a simple picture of " * 56 + f"a {colour} circle on a yellow background"
    tokenizer = sdxl._pipe.tokenizer
    assert len(tokenizer(prompt, truncation=False).input_ids) > 200
    seen = recognize_scene(generate(prompt)[0])
    assert (seen.colour, seen.background) == (colour, "yellow")
