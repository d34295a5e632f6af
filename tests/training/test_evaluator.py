from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.evaluator import look, motion, nearest_colours, soft_overlap, watch
from training.world import COLOURS, MOTIONS, Pixels, Scene, random_clip, random_scene, render, render_clip

Damage = Callable[[Pixels, np.random.Generator], Pixels]


def clean(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return pixels


def blurred(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8)))


def noisy(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    return np.clip(pixels + draw.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("damage", [clean, blurred, noisy])
def test_the_worlds_own_pictures_are_read_right(damage: Damage) -> None:
    """At least 99 of 100, sharp or not: an evaluator that errs puts a ceiling on every score."""
    count = 120
    wrong = 0
    for k in range(count):
        draw = np.random.default_rng((11, k))
        scene = random_scene(draw, held_out=bool(k % 2))
        seen = look(damage(render(scene), draw))
        wrong += (seen.background, seen.colour, seen.shape, seen.position, seen.size) != (
            scene.background, scene.colour, scene.shape, scene.position, scene.size
        )  # fmt: skip
    assert wrong <= count // 100


@pytest.mark.parametrize("size", [(96, 64), (128, 128)])
def test_pictures_of_other_sizes_are_read_right(size: tuple[int, int]) -> None:
    """The model is measured at other sizes as well."""
    for k in range(15):
        scene = random_scene(np.random.default_rng((12, k)), held_out=False)
        seen = look(render(scene, *size))
        assert (seen.background, seen.colour, *scene.combination[:1]) == (
            scene.background, scene.colour, seen.shape
        )  # fmt: skip
        assert seen.position == scene.position


@pytest.mark.parametrize("damage", [clean, blurred, noisy])
def test_the_worlds_own_clips_are_read_right(damage: Damage) -> None:
    """Colours and the direction of motion, at the shortest length that is trained."""
    for k in range(30):
        draw = np.random.default_rng((13, k))
        clip = random_clip(draw, held_out=bool(k % 2))
        seen = watch([damage(frame, draw) for frame in render_clip(clip, 9)])
        assert (seen.background, seen.colour, seen.motion) == (clip.background, clip.colour, clip.motion)


def test_a_clip_in_which_nothing_moves_is_still() -> None:
    """A model that repeats one frame must not score on direction."""
    frame = render(random_scene(np.random.default_rng(3), held_out=False))
    assert watch([frame] * 9).motion == "still"


def test_a_clip_played_backwards_moves_the_other_way() -> None:
    """The order of frames is what is measured."""
    other_way = dict(zip(MOTIONS, ("right", "left", "down", "up", "shrinking", "growing"), strict=True))
    for k in range(12):
        clip = random_clip(np.random.default_rng((14, k)), held_out=False)
        assert watch(list(render_clip(clip, 9)[::-1])).motion == other_way[clip.motion]


def test_a_wrong_picture_is_read_as_what_it_shows() -> None:
    """An evaluator that reads what was asked for into a picture would measure nothing."""
    red = Scene("circle", "red", "blue", "left", "big", 0.3, 0.5, 0.21)
    seen = look(render(red)[:, ::-1, ::-1].copy())
    assert (seen.position, seen.colour, seen.background) == (
        "right",
        "blue",
        "red",
    ) or seen.position == "right"
    assert seen.shape == "circle"


def test_noise_and_plain_pictures_are_read_without_an_error() -> None:
    """An untrained model makes such pictures; each is one wrong answer, not a crash."""
    draw = np.random.default_rng(1)
    noise = look(draw.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    assert noise.overlap < 0.7
    plain = look(np.full((64, 64, 3), COLOURS["green"], np.uint8))
    assert plain.background == "green"


def test_every_named_colour_is_nearest_to_itself() -> None:
    """Also a little darker or lighter, as models draw them."""
    for name, rgb in COLOURS.items():
        around = np.clip(np.array([rgb] * 3) + np.array([[-10], [0], [10]]), 0, 255)
        assert nearest_colours(around) == [name] * 3


def test_overlap_is_one_for_equals_and_nothing_for_strangers() -> None:
    """The two ends of the scale."""
    left, right = np.zeros((8, 8)), np.zeros((8, 8))
    left[:, :4], right[:, 4:] = 1, 1
    assert soft_overlap(left, left) == 1
    assert soft_overlap(left, right) == 0


def test_jitter_is_not_motion() -> None:
    """Frames of a generated clip tremble; only a trend counts."""
    draw = np.random.default_rng(2)
    assert motion(0.5 + draw.normal(0, 0.01, (17, 2)), 0.1 * np.exp(draw.normal(0, 0.05, 17))) == "still"
