from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.shapes import SHAPES, coverage
from training.world import (
    CELLS,
    COLOURS,
    MOTIONS,
    combinations,
    is_held_out,
    place,
    random_clip,
    random_scene,
    render,
    render_clip,
)

seeds = st.integers(0, 2**32)


def test_the_world_is_rich_enough_to_mean_something() -> None:
    """Fewer colours or shapes, and guessing would look like understanding."""
    assert len(COLOURS) >= 8
    assert len(SHAPES) >= 5
    assert {"left", "right", "top", "bottom", "centre"} <= set(CELLS)


@given(seeds)
def test_training_scenes_and_held_out_scenes_share_no_combination(seed: int) -> None:
    """A held-out score is worth nothing if the combination was trained on."""
    trained = random_scene(np.random.default_rng(seed), held_out=False)
    held_out = random_scene(np.random.default_rng(seed), held_out=True)
    assert not is_held_out(trained.combination)
    assert is_held_out(held_out.combination)


@given(seeds)
def test_training_clips_and_held_out_clips_share_no_combination(seed: int) -> None:
    """The same split for clips, by motion instead of position."""
    assert not is_held_out(random_clip(np.random.default_rng(seed), held_out=False).combination)
    assert is_held_out(random_clip(np.random.default_rng(seed), held_out=True).combination)


@pytest.mark.parametrize("last", [tuple(CELLS), MOTIONS], ids=["scenes", "clips"])
def test_the_split_is_complete_and_even(last: tuple[str, ...]) -> None:
    """Every shape, colour, background and place is on both sides, so that only combinations are new."""
    trained, held_out = (set(combinations(held_out=side, last=last)) for side in (False, True))
    every = len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1) * len(last)
    assert len(trained | held_out) == every
    assert not trained & held_out
    assert 0.07 < len(held_out) / every < 0.13
    for part in range(4):
        assert {one[part] for one in held_out} == {one[part] for one in trained}


def test_the_split_stays_as_it_is() -> None:
    """Shipped weights were trained on one side of it: another split would measure them on what they saw."""
    assert len(combinations(held_out=True)) == 313
    assert combinations(held_out=True)[0] == ("circle", "red", "green", "centre")


@given(seeds)
def test_equal_draws_are_equal_scenes(seed: int) -> None:
    """Otherwise a resumed run would see other pictures."""
    one, other = (random_scene(np.random.default_rng(seed), held_out=False) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_shape_is_where_it_is_said_to_be(shape: str) -> None:
    """Positions are measured by the middle of the shape, so a drawing must not pull to one side."""
    cover = coverage(shape, 0.4, 0.6, 0.2, 256, 256)
    along = np.arange(256) + 0.5
    total = cover.sum()
    assert (cover.sum(axis=0) @ along) / total / 256 == pytest.approx(0.4, abs=0.005)
    assert (cover.sum(axis=1) @ along) / total / 256 == pytest.approx(0.6, abs=0.005)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_shape_keeps_its_look_at_any_size(shape: str) -> None:
    """The model is used at other sizes than it was trained at; the world must mean the same there."""
    small = coverage(shape, 0.5, 0.5, 0.23, 64, 64)
    large = coverage(shape, 0.5, 0.5, 0.23, 256, 256).reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 0.01


@given(seeds, st.sampled_from([(64, 64), (96, 64), (128, 128)]))
def test_a_picture_has_its_two_colours_and_no_third(seed: int, size: tuple[int, int]) -> None:
    """Every pixel is one of the two colours or a mixture of them at the edge; nothing is cut off."""
    scene = random_scene(np.random.default_rng(seed), held_out=False)
    pixels = render(scene, *size)
    under, over = (np.array(COLOURS[name], float) for name in (scene.background, scene.colour))
    assert pixels.shape == (size[1], size[0], 3)
    assert (pixels[[0, -1]] == under).all()
    assert (pixels[:, [0, -1]] == under).all()
    off, line = pixels - under, over - under
    along = off @ line / (line @ line)
    assert np.abs(off - along[..., None] * line).max() <= 1
    assert along.max() > 0.99


@given(seeds)
def test_a_clip_moves_as_it_says(seed: int) -> None:
    """The first and the last frame tell the direction."""
    clip = random_clip(np.random.default_rng(seed), held_out=False)
    (x0, y0, r0), (x1, y1, r1) = place(clip, 0), place(clip, 1)
    moved = {"left": x0 - x1, "up": y0 - y1, "growing": r1 - r0}
    moved |= {"right": -moved["left"], "down": -moved["up"], "shrinking": -moved["growing"]}
    assert max(moved, key=lambda name: moved[name]) == clip.motion
    assert render_clip(clip, 5, 48, 32).shape == (5, 32, 48, 3)
