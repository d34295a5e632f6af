from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.recognition import (
    nearest_colours,
    recognize_clip,
    recognize_motion,
    recognize_scene,
    soft_overlap,
)
from training.scenes import COLOURS, MOTIONS, Pixels, Scene, random_clip, random_scene, render, render_clip

ATTRIBUTES = ("background", "colour", "shape", "position", "size")

Damage = Callable[[Pixels, np.random.Generator], Pixels]


def clean(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return pixels


def blurred(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8)))


def noisy(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("damage", [clean, blurred, noisy])
def test_rendered_images_are_recognized(damage: Damage) -> None:
    """At least 99 of 100, also blurred or noisy: errors of the recognition would lower every score."""
    count = 120
    errors = 0
    for k in range(count):
        rng = np.random.default_rng((11, k))
        scene = random_scene(rng, held_out=bool(k % 2))
        recognized = recognize_scene(damage(render(scene), rng))
        errors += any(getattr(recognized, name) != getattr(scene, name) for name in ATTRIBUTES)
    assert errors <= count // 100


@pytest.mark.parametrize("size", [(96, 64), (128, 128)])
def test_images_of_other_sizes_are_recognized(size: tuple[int, int]) -> None:
    """Models are evaluated at other sizes as well."""
    for k in range(15):
        scene = random_scene(np.random.default_rng((12, k)), held_out=False)
        recognized = recognize_scene(render(scene, *size))
        assert (recognized.background, recognized.colour, *scene.combination[:1]) == (
            scene.background, scene.colour, recognized.shape
        )  # fmt: skip
        assert recognized.position == scene.position


@pytest.mark.parametrize("damage", [clean, blurred, noisy])
def test_rendered_clips_are_recognized(damage: Damage) -> None:
    """Colours and motion at the shortest length of the training clips."""
    for k in range(30):
        rng = np.random.default_rng((13, k))
        clip = random_clip(rng, held_out=bool(k % 2))
        recognized = recognize_clip([damage(frame, rng) for frame in render_clip(clip, 9)])
        assert (recognized.background, recognized.colour, recognized.motion) == (
            clip.background,
            clip.colour,
            clip.motion,
        )


def test_a_clip_without_motion_is_still() -> None:
    """A model that repeats one frame must not score on motion."""
    frame = render(random_scene(np.random.default_rng(3), held_out=False))
    assert recognize_clip([frame] * 9).motion == "still"


def test_a_reversed_clip_has_the_opposite_motion() -> None:
    """The motion depends on the order of the frames."""
    opposite = dict(zip(MOTIONS, ("right", "left", "down", "up", "shrinking", "growing"), strict=True))
    for k in range(12):
        clip = random_clip(np.random.default_rng((14, k)), held_out=False)
        assert recognize_clip(list(render_clip(clip, 9)[::-1])).motion == opposite[clip.motion]


def test_a_wrong_image_is_recognized_as_what_it_shows() -> None:
    """The recognition must not depend on what was requested."""
    red = Scene("circle", "red", "blue", "left", "big", 0.3, 0.5, 0.21)
    recognized = recognize_scene(render(red)[:, ::-1, ::-1].copy())
    assert (recognized.position, recognized.colour, recognized.background) == (
        "right",
        "blue",
        "red",
    ) or recognized.position == "right"
    assert recognized.shape == "circle"


def test_noise_and_plain_images_are_recognized_without_an_error() -> None:
    """An untrained model generates such images; they count as wrong answers."""
    rng = np.random.default_rng(1)
    noise = recognize_scene(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    assert noise.overlap < 0.7
    plain = recognize_scene(np.full((64, 64, 3), COLOURS["green"], np.uint8))
    assert plain.background == "green"


def test_every_colour_is_nearest_to_itself() -> None:
    """Also a little darker or lighter, as models generate them."""
    for name, rgb in COLOURS.items():
        shades = np.clip(np.array([rgb] * 3) + np.array([[-10], [0], [10]]), 0, 255)
        assert nearest_colours(shades) == [name] * 3


def test_overlap_is_one_for_equal_masks_and_zero_for_disjoint_ones() -> None:
    """The ends of the scale."""
    left, right = np.zeros((8, 8)), np.zeros((8, 8))
    left[:, :4], right[:, 4:] = 1, 1
    assert soft_overlap(left, left) == 1
    assert soft_overlap(left, right) == 0


def test_jitter_is_no_motion() -> None:
    """Generated clips jitter; only a trend is a motion."""
    rng = np.random.default_rng(2)
    assert (
        recognize_motion(0.5 + rng.normal(0, 0.01, (17, 2)), 0.1 * np.exp(rng.normal(0, 0.05, 17))) == "still"
    )
