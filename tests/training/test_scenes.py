from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.scenes import (
    CELLS,
    COLOURS,
    MOTIONS,
    combinations,
    geometry,
    is_held_out,
    random_clip,
    random_scene,
    render,
    render_clip,
)
from training.shapes import SHAPES, coverage

seeds = st.integers(0, 2**32)


def test_there_are_many_colours_shapes_and_positions() -> None:
    """With few, chance alone would give high scores."""
    assert len(COLOURS) >= 8
    assert len(SHAPES) >= 5
    assert {"left", "right", "top", "bottom", "centre"} <= set(CELLS)


@given(seeds)
def test_training_scenes_and_held_out_scenes_share_no_combination(seed: int) -> None:
    """A held-out score means nothing if the combination was trained on."""
    trained = random_scene(np.random.default_rng(seed), held_out=False)
    held_out = random_scene(np.random.default_rng(seed), held_out=True)
    assert not is_held_out(trained.combination)
    assert is_held_out(held_out.combination)


@given(seeds)
def test_training_clips_and_held_out_clips_share_no_combination(seed: int) -> None:
    """The split of clips is by motion instead of position."""
    assert not is_held_out(random_clip(np.random.default_rng(seed), held_out=False).combination)
    assert is_held_out(random_clip(np.random.default_rng(seed), held_out=True).combination)


@pytest.mark.parametrize("last", [tuple(CELLS), MOTIONS], ids=["scenes", "clips"])
def test_the_split_is_complete_and_balanced(last: tuple[str, ...]) -> None:
    """Every attribute is on both sides, so that only combinations are new."""
    trained, held_out = (set(combinations(held_out=side, last=last)) for side in (False, True))
    total = len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1) * len(last)
    assert len(trained | held_out) == total
    assert not trained & held_out
    assert 0.07 < len(held_out) / total < 0.13
    for part in range(4):
        assert {one[part] for one in held_out} == {one[part] for one in trained}


def test_the_split_does_not_change() -> None:
    """The packaged weights were trained on one side of it; another would score them on training data."""
    assert len(combinations(held_out=True)) == 313
    assert combinations(held_out=True)[0] == ("circle", "red", "green", "centre")


@given(seeds)
def test_equal_generators_give_equal_scenes(seed: int) -> None:
    """Otherwise a resumed run would train on other images."""
    one, other = (random_scene(np.random.default_rng(seed), held_out=False) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_shape_is_centred_at_its_position(shape: str) -> None:
    """Positions are recognized by the centre of mass."""
    cover = coverage(shape, 0.4, 0.6, 0.2, 256, 256)
    along = np.arange(256) + 0.5
    total = cover.sum()
    assert (cover.sum(axis=0) @ along) / total / 256 == pytest.approx(0.4, abs=0.005)
    assert (cover.sum(axis=1) @ along) / total / 256 == pytest.approx(0.6, abs=0.005)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_shape_looks_the_same_at_any_size(shape: str) -> None:
    """Models are evaluated at other sizes than they were trained at."""
    small = coverage(shape, 0.5, 0.5, 0.23, 64, 64)
    large = coverage(shape, 0.5, 0.5, 0.23, 256, 256).reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 0.01


@given(seeds, st.sampled_from([(64, 64), (96, 64), (128, 128)]))
def test_an_image_has_two_colours_and_their_mixtures(seed: int, size: tuple[int, int]) -> None:
    """Only pixels at the edge are mixtures, and the shape is not cut off."""
    scene = random_scene(np.random.default_rng(seed), held_out=False)
    pixels = render(scene, *size)
    behind, foreground = (np.array(COLOURS[name], float) for name in (scene.background, scene.colour))
    assert pixels.shape == (size[1], size[0], 3)
    assert (pixels[[0, -1]] == behind).all()
    assert (pixels[:, [0, -1]] == behind).all()
    difference, line = pixels - behind, foreground - behind
    along = difference @ line / (line @ line)
    assert np.abs(difference - along[..., None] * line).max() <= 1
    assert along.max() > 0.99


@given(seeds)
def test_a_clip_moves_as_its_motion_says(seed: int) -> None:
    """The first and the last frame differ in the direction of the motion."""
    clip = random_clip(np.random.default_rng(seed), held_out=False)
    (x0, y0, r0), (x1, y1, r1) = geometry(clip, 0), geometry(clip, 1)
    moved = {"left": x0 - x1, "up": y0 - y1, "growing": r1 - r0}
    moved |= {"right": -moved["left"], "down": -moved["up"], "shrinking": -moved["growing"]}
    assert max(moved, key=lambda name: moved[name]) == clip.motion
    assert render_clip(clip, 5, 48, 32).shape == (5, 32, 48, 3)
