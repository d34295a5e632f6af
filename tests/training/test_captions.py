from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.captions import MOTION_PHRASES, POSITION_PHRASES, SIZE_WORDS, caption, clip_caption
from training.scenes import COLOURS, random_clip, random_scene
from training.shapes import SHAPES

seeds = st.integers(0, 2**32)


@given(seeds)
def test_a_complete_caption_names_every_measured_attribute(seed: int) -> None:
    """Held-out captions must ask for everything that they are scored on."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, held_out=True)
    text = caption(scene, rng, complete=True)
    assert scene.shape in text
    assert scene.colour in text
    assert f"{scene.background} background" in text or f"background is {scene.background}" in text
    assert any(words in text for words in POSITION_PHRASES[scene.position])


@given(seeds)
def test_a_caption_names_no_wrong_attribute(seed: int) -> None:
    """A wrong word would be label noise."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, held_out=False)
    words = caption(scene, rng).replace(",", "").split()
    assert not {*COLOURS} - {scene.colour, scene.background} & {*words}
    assert not {*SHAPES} - {scene.shape} & {*words}
    wrong_sizes = {word for size, those in SIZE_WORDS.items() if size != scene.size for word in those}
    assert not wrong_sizes & {*words}


@given(seeds)
def test_a_clip_caption_names_the_motion(seed: int) -> None:
    """No caption of a clip leaves the motion out."""
    rng = np.random.default_rng(seed)
    clip = random_clip(rng, held_out=False)
    text = clip_caption(clip, rng)
    assert clip.shape in text
    assert any(words in text for words in MOTION_PHRASES[clip.motion])


def test_one_scene_has_many_captions() -> None:
    """A model trained on one wording would follow only that one."""
    scene = random_scene(np.random.default_rng(1), held_out=False)
    assert len({caption(scene, np.random.default_rng(k)) for k in range(300)}) > 100


def test_some_captions_leave_attributes_out() -> None:
    """Otherwise a word like "red" would never be trained on its own."""
    scene = random_scene(np.random.default_rng(1), held_out=False)
    texts = [caption(scene, np.random.default_rng(k)) for k in range(300)]
    for words in ([scene.colour], [scene.background], list(POSITION_PHRASES[scene.position])):
        count = sum(any(word in text for word in words) for text in texts)
        assert 0.3 * len(texts) < count < len(texts)


@given(seeds)
def test_articles_match_the_next_word(seed: int) -> None:
    """ "a orange" would train a wrong article."""
    rng = np.random.default_rng(seed)
    words = caption(random_scene(rng, held_out=False), rng).split()
    for article, word in pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")
