"""Prompts about landscapes, animals and things."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from training.captions import PREFIXES
from training.qwen import vocabulary
from training.qwen.sampling import articled, made_up_word, pick, pluralize
from training.qwen.vocabulary import content_words
from training.scenes import COLOURS, is_held_out

MADE_UP_RATE = 0.6
"""Proportion of training scenes that may have made-up nouns."""
MADE_UP_NOUN_RATE = 0.5
"""Proportion of made-up nouns in those."""

ChooseNoun = Callable[[Sequence[str]], str]


def scene_prompt(rng: np.random.Generator, *, held_out: bool) -> str:
    """A scene or two joined ones, sometimes with a time of day or year; all of one side of the split."""
    text = _simple_scene(rng, held_out=held_out)
    if rng.random() < 0.15:
        joint = pick(rng, (" and ", ", with ", " next to ", ". Behind it ", "; far away "))
        text = f"{text}{joint}{_simple_scene(rng, held_out=held_out)}"
    if rng.random() < 0.2:
        text = f"{text} {pick(rng, vocabulary.TIMES)}"
    if rng.random() < 0.08 and text.startswith("a"):
        text = f"{pick(rng, PREFIXES)} {text}"
    return text


def _simple_scene(rng: np.random.Generator, *, held_out: bool) -> str:
    """One scene of the requested side of the split, which is decided by its content words."""
    made_up = not held_out and rng.random() < MADE_UP_RATE

    def noun(choices: Sequence[str]) -> str:
        return made_up_word(rng) if made_up and rng.random() < MADE_UP_NOUN_RATE else pick(rng, choices)

    while True:
        text = articled(_pattern(rng, noun))
        if is_held_out(("scene", *sorted(content_words(text)))) == held_out:
            return text


def _pattern(rng: np.random.Generator, noun: ChooseNoun) -> str:
    """One of fourteen sentence patterns with random words."""
    colours = tuple(COLOURS)
    one, other = (pick(rng, colours) for _ in range(2))
    animal, thing, land = noun(vocabulary.ANIMALS), noun(vocabulary.THINGS), noun(vocabulary.LANDS)
    quality, relation, doing = (
        pick(rng, choices) for choices in (vocabulary.QUALITIES, vocabulary.RELATIONS, vocabulary.DOINGS)
    )
    ground, sky = noun(vocabulary.GROUNDS), noun(vocabulary.SKIES)
    patterns = (
        f"a {one} {land} under a {other} {sky}",
        f"a {one} {animal} on a {other} {ground}",
        f"a {quality} {land} with a {one} {thing}",
        f"a {one} {thing} {relation} a {quality} {land}",
        f"a {animal} {doing} {relation} a {one} {thing}",
        f"the {quality} {animal} is {doing}",
        f"{pick(rng, vocabulary.NUMBERS)} {one} {pluralize(animal)} {relation} the {land}",
        f"{quality} {animal}, {one} {ground}, {other} {sky}",
        f"{one} {thing} and {other} {thing if rng.random() < 0.1 else noun(vocabulary.THINGS)}",
        f"a {land} {relation} a {quality} {thing}",
        f"{animal} {doing} in the {land}",
        f"a {one} {thing}",
        f"the {sky} above the {one} {land} is {other}",
        f"a {quality} {one} {animal} {relation} the {thing}",
    )
    return pick(rng, patterns)
