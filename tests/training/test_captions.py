from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.captions import MOTION_WORDS, PLACES, SIZE_WORDS, caption, clip_caption
from training.shapes import SHAPES
from training.world import COLOURS, random_clip, random_scene

seeds = st.integers(0, 2**32)


@given(seeds)
def test_a_complete_caption_tells_all_that_is_measured(seed: int) -> None:
    """Held-out captions must ask for everything they are marked by."""
    draw = np.random.default_rng(seed)
    scene = random_scene(draw, held_out=True)
    text = caption(scene, draw, complete=True)
    assert scene.shape in text
    assert scene.colour in text
    assert f"{scene.background} background" in text or f"background is {scene.background}" in text
    assert any(words in text for words in PLACES[scene.position])


@given(seeds)
def test_a_caption_tells_nothing_that_is_not_so(seed: int) -> None:
    """A wrong word in training is noise in what every word means."""
    draw = np.random.default_rng(seed)
    scene = random_scene(draw, held_out=False)
    words = caption(scene, draw).replace(",", "").split()
    assert not {*COLOURS} - {scene.colour, scene.background} & {*words}
    assert not {*SHAPES} - {scene.shape} & {*words}
    wrong_sizes = {word for size, those in SIZE_WORDS.items() if size != scene.size for word in those}
    assert not wrong_sizes & {*words}


@given(seeds)
def test_a_clip_is_called_by_its_motion(seed: int) -> None:
    """Motion is what a clip is about: no caption leaves it out."""
    draw = np.random.default_rng(seed)
    clip = random_clip(draw, held_out=False)
    text = clip_caption(clip, draw)
    assert clip.shape in text
    assert any(words in text for words in MOTION_WORDS[clip.motion])


def test_one_scene_has_many_captions() -> None:
    """A model that saw one wording would follow one wording."""
    scene = random_scene(np.random.default_rng(1), held_out=False)
    assert len({caption(scene, np.random.default_rng(k)) for k in range(300)}) > 100


def test_some_captions_leave_things_out() -> None:
    """Without them a single word like "red" would never have stood alone."""
    scene = random_scene(np.random.default_rng(1), held_out=False)
    texts = [caption(scene, np.random.default_rng(k)) for k in range(300)]
    for words in ([scene.colour], [scene.background], list(PLACES[scene.position])):
        told = sum(any(word in text for word in words) for text in texts)
        assert 0.3 * len(texts) < told < len(texts)


@given(seeds)
def test_articles_fit_their_words(seed: int) -> None:
    """ "a orange" would teach a word that nobody writes."""
    draw = np.random.default_rng(seed)
    words = caption(random_scene(draw, held_out=False), draw).split()
    for article, word in pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")
