"""Prompts about things that move: any noun, every verb form, directions, places and backgrounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from training.qwen import vocabulary
from training.qwen.sampling import articled, made_up_word, pick, pluralize
from training.qwen.verbs import (
    ADVERBS,
    CORNERS,
    DIRECTIONS,
    MOTION_VERBS,
    SIZE_VERBS,
    Verb,
    inflect,
)
from training.scenes import COLOURS, is_held_out
from training.shapes import SHAPES

NOUNS = (*SHAPES, *SHAPES, *vocabulary.SHAPE_SYNONYMS, *vocabulary.THINGS, *vocabulary.ANIMALS)

MADE_UP_RATE = 0.5
"""Proportion of training prompts that may have made-up words."""
MADE_UP_NOUN_RATE = 0.6
MADE_UP_VERB_RATE = 0.3
"""Proportion of made-up nouns and verbs in those."""

Form = Literal["base", "third", "present", "past", "participle"]
FORMS: tuple[Form, ...] = get_args(Form)
FORM_SHARES: tuple[Form, ...] = ("base", "third", "third", "present", "present", "past", "participle")


@dataclass(frozen=True, slots=True)
class Motion:
    """The words of a motion prompt. `form` names the verb form; `direction` may be empty."""

    noun: str
    colour: str
    verb: Verb
    form: Form
    direction: str

    @property
    def combination(self) -> tuple[str, ...]:
        """The key of the split into training and held-out prompts."""
        return ("motion", self.noun, self.colour, self.verb.form(self.form), self.direction)


def motion_prompt(rng: np.random.Generator, *, held_out: bool) -> str:
    """A prompt of one side of the split. Made-up words occur in training prompts only."""
    while True:
        made_up = not held_out and rng.random() < MADE_UP_RATE
        noun = made_up_word(rng) if made_up and rng.random() < MADE_UP_NOUN_RATE else pick(rng, NOUNS)
        verb = _verb(rng, made_up=made_up and rng.random() < MADE_UP_VERB_RATE)
        colour = pick(rng, tuple(COLOURS))
        direction = "" if verb in SIZE_VERBS else pick(rng, DIRECTIONS)
        motion = Motion(noun, colour, verb, pick(rng, FORM_SHARES), direction)
        text = motion_sentence(motion, rng)
        if is_held_out(motion.combination) == held_out:
            return text


def inflected_prompts(verbs: Sequence[Verb], seed: tuple[int, ...]) -> Iterator[str]:
    """One held-out prompt for every form of every verb; the random numbers depend on `seed` and the form."""
    for row, verb in enumerate(verbs):
        for column, form in enumerate(FORMS):
            rng = np.random.default_rng((*seed, row, column))
            while True:
                direction = "" if verb in SIZE_VERBS else pick(rng, DIRECTIONS)
                motion = Motion(pick(rng, NOUNS), pick(rng, tuple(COLOURS)), verb, form, direction)
                if is_held_out(motion.combination):
                    yield motion_sentence(motion, rng)
                    break


def motion_sentence(motion: Motion, rng: np.random.Generator) -> str:
    """A sentence or phrase with the words of a motion, and sometimes a size, an adverb, a place and a
    background."""
    size = f"{pick(rng, vocabulary.SIZE_ADJECTIVES)} " if rng.random() < 0.35 else ""
    clause = _clause(motion, f"{size}{motion.colour}", _modifiers(rng, motion.direction), rng)
    ending = _ending(rng)
    if ending and rng.random() < 0.15 and not clause.startswith(("make", "let")):
        return articled(f"{ending.lstrip(', ')}, {clause}")
    return articled(f"{clause}{ending}")


def _clause(motion: Motion, adjectives: str, modifiers: str, rng: np.random.Generator) -> str:
    """One of the patterns that the verb form allows."""
    singular = f"{adjectives} {motion.noun}"
    plural = f"{adjectives} {pluralize(motion.noun)}"
    verb = f"{motion.verb.form(motion.form)}{modifiers}"
    patterns: dict[Form, tuple[str, ...]] = {
        "third": (f"a {singular} {verb}", f"the {singular} {verb}", f"a {singular} that {verb}",
                  f"one {singular} {verb}", f"{singular} {verb}"),
        "present": (f"a {singular} {verb}", f"the {singular} is {verb}", f"a {singular} is {verb}",
                    f"{singular} {verb}", f"a {singular} keeps {verb}", f"the {singular} was {verb}",
                    f"{verb}, a {singular}", f"two {plural} {verb}"),
        "past": (f"a {singular} {verb}", f"the {singular} {verb}", f"the {singular} that {verb}"),
        "participle": (f"a {singular} has {verb}", f"the {singular} had {verb}"),
        "base": (f"a {singular} will {verb}", f"a {singular} starts to {verb}", f"make the {singular} {verb}",
                 f"let a {singular} {verb}", f"a {singular} begins to {verb}", f"watch a {singular} {verb}",
                 f"{pick(rng, vocabulary.NUMBERS)} {plural} {verb}"),
    }  # fmt: skip
    return pick(rng, patterns[motion.form])


def _modifiers(rng: np.random.Generator, direction: str) -> str:
    """An adverb or none and the direction, in either order, each with a space before it."""
    adverb = pick(rng, ADVERBS) if rng.random() < 0.25 else ""
    parts = [part for part in (adverb, direction) if part]
    if rng.random() < 0.4:
        parts.reverse()
    return "".join(f" {part}" for part in parts)


def _ending(rng: np.random.Generator) -> str:
    """A place, a background, both or neither."""
    place = f" {pick(rng, CORNERS)}" if rng.random() < 0.25 else ""
    colour = pick(rng, tuple(COLOURS))
    surface = pick(rng, (*vocabulary.GROUNDS, *vocabulary.SKIES, *vocabulary.LANDS))
    endings = (
        "", "", f" on a {colour} background", f" on a {colour} background", f", {colour} background",
        f" against a {colour} background", f", the background is {colour}",
        f" in front of a {colour} background", f" over a {colour} {surface}",
        f" {pick(rng, vocabulary.PREPOSITIONS)} the {surface}",
    )  # fmt: skip
    return f"{place}{pick(rng, endings)}"


def _verb(rng: np.random.Generator, *, made_up: bool) -> Verb:
    """A random verb of motion or size, or a made-up one."""
    if made_up:
        return inflect(made_up_word(rng))
    return pick(rng, SIZE_VERBS) if rng.random() < 0.1 else pick(rng, MOTION_VERBS)
