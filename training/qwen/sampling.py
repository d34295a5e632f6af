"""Random draws of words: choices, made-up words, articles and plurals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from training.qwen import vocabulary
from training.qwen.verbs import UNSEEN_VERB_FORMS
from training.scenes import COLOURS
from training.shapes import SHAPES

BLENDED = (
    *vocabulary.ANIMALS, *vocabulary.THINGS, *vocabulary.LANDS, *vocabulary.QUALITIES, *SHAPES, *COLOURS,
    *vocabulary.COMMON,
)  # fmt: skip
"""Words that blends are cut from."""
SUFFIXES = ("s", "es", "ed", "ing", "er", "ly", "ness", "ward", "wards", "y", "ish", "est", "ies", "ful")
ACCENTED = "àâäåæçéèêëíîïñóôöøœßúûüýÿłšžčğ"

T = TypeVar("T")


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def made_up_word(rng: np.random.Generator) -> str:
    """A word outside the vocabulary: random letters, a blend of two words or random syllables, sometimes
    with an English suffix. It is never one of the unseen nouns and verbs of the evaluation."""
    kind = rng.random()
    if kind < 0.2:
        word = "".join(chr(97 + k) for k in rng.integers(0, 26, rng.integers(3, 9)))
    elif kind < 0.22:
        word = "".join(pick(rng, ACCENTED + "aeionrst") for _ in range(rng.integers(3, 8)))
    elif kind < 0.6:
        first, second = (pick(rng, BLENDED) for _ in range(2))
        word = first[: rng.integers(1, len(first))] + second[rng.integers(1, len(second)) :]
    else:
        syllables = rng.integers(1, 4)
        word = "".join(
            pick(rng, vocabulary.SYLLABLE_STARTS) + pick(rng, vocabulary.SYLLABLE_ENDS)
            for _ in range(syllables)
        )
    if rng.random() < 0.3:
        word += pick(rng, SUFFIXES)
    unseen = word in vocabulary.UNSEEN or word in UNSEEN_VERB_FORMS
    return made_up_word(rng) if unseen or len(word) < 3 else word


def articled(text: str) -> str:
    """The same text with "an" in place of "a" before vowels."""
    parts = text.split(" ")
    for index, word in enumerate(parts[:-1]):
        if word == "a" and parts[index + 1][:1] in tuple("aeiou"):
            parts[index] = "an"
    return " ".join(parts)


def pluralize(noun: str) -> str:
    """The plural of a noun."""
    if noun in vocabulary.PLURALS:
        return vocabulary.PLURALS[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
