"""Prompts and their enriched forms.

An enriched prompt repeats the prompt word for word and adds phrases of visual detail: copying is what a small
model can learn, and it keeps every noun, colour, verb and direction. Many training prompts contain made-up
words or words in random order, so that the model has to copy instead of recalling a list.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from training.captions import caption, clip_caption
from training.qwen import vocabulary
from training.qwen.motion_prompts import motion_prompt
from training.qwen.sampling import articled, made_up_word, pick
from training.qwen.scene_prompts import scene_prompt
from training.qwen.verbs import ADVERBS, EVERY_FORM
from training.qwen.vocabulary import content_words, words_of
from training.scenes import COLOURS, random_clip, random_scene
from training.shapes import SHAPES

ADDED_WORDS = 4
"""The least number of words that an enriched prompt adds."""

DETAILS = {
    "picture": vocabulary.PLAIN_DETAILS,
    "clip": vocabulary.MOVING_DETAILS,
    "scene": vocabulary.SCENIC_DETAILS,
    "motion": vocabulary.MOVING_DETAILS,
    "list": vocabulary.SCENIC_DETAILS,
}
KINDS = tuple(DETAILS)
TRAINING_SHARES = (0.22, 0.15, 0.22, 0.21, 0.2)
CAPTION_KINDS = ("picture", "clip", "scene")

OPENINGS = ("a clear picture of", "a detailed view of", "a well lit view of")
OPENING_RATE = 0.06

REPETITION_RATE = 0.35
"""Proportion of lists that draw from a few words."""
MARKUP = ("({}:1.2)", "({})", '"{}"', "{}!", "{}-like", "{}: ", "[{}]", "{}?", "{}'s", "{};")
"""Punctuation and weights around words of a list."""
WISHES = (
    "Draw {}",
    "Show me {}",
    "Paint {}",
    "I want {}",
    "Make {}",
    "Create {}",
    "I would like {}",
    "{} please",
)
"""Requests around a prompt, used where a system prompt or a message already asks for enrichment."""

VOCABULARY = (
    *vocabulary.ANIMALS, *vocabulary.THINGS, *vocabulary.LANDS, *vocabulary.GROUNDS, *vocabulary.SKIES,
    *vocabulary.QUALITIES, *COLOURS, *SHAPES, *vocabulary.RELATIONS, *vocabulary.DOINGS,
    *vocabulary.SHAPE_SYNONYMS, *vocabulary.COMMON, *EVERY_FORM, *ADVERBS,
    "a", "the", "of", "is", "and",
)  # fmt: skip
"""The words that lists are drawn from; some are in it more than once."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt; `kind` is one of `KINDS` and decides which details are added."""

    text: str
    kind: str


def random_prompt(rng: np.random.Generator) -> Prompt:
    """A training prompt; equal generators give equal prompts."""
    kind = str(rng.choice(KINDS, p=TRAINING_SHARES))
    return Prompt(_vary_surface(_text(kind, rng, held_out=False), rng), kind)


def held_out_prompt(rng: np.random.Generator) -> Prompt:
    """A picture, clip or scene prompt of a combination that no training text has, without made-up words."""
    kind = pick(rng, CAPTION_KINDS)
    return Prompt(_vary_surface(_text(kind, rng, held_out=True), rng), kind)


def unseen_prompt(rng: np.random.Generator) -> Prompt:
    """A scene with a noun that no training text has."""
    noun, land = pick(rng, vocabulary.UNSEEN), pick(rng, vocabulary.LANDS)
    colour = pick(rng, tuple(COLOURS))
    text = pick(
        rng,
        (
            f"a {colour} {noun} {pick(rng, vocabulary.RELATIONS)} a {land}",
            f"a {pick(rng, vocabulary.QUALITIES)} {noun} and a {colour} {pick(rng, vocabulary.ANIMALS)}",
            f"a {noun} on a {colour} background",
        ),
    )
    return Prompt(articled(text), "scene")


def enrich(prompt: Prompt, rng: np.random.Generator) -> str:
    """The prompt with two to four phrases of visual detail, more than `ADDED_WORDS` words in all.

    The phrases are in the order of `DETAILS`, so that greedy decoding repeats none.
    """
    text = prompt.text.rstrip(".")
    details = [phrase for phrase in DETAILS[prompt.kind] if phrase not in text]
    indices: list[int] = []
    extra = rng.integers(0, 2)
    for index in rng.permutation(len(details)):
        has_enough_words = len(words_of(" ".join(details[k] for k in indices))) > ADDED_WORDS
        if has_enough_words and (extra := extra - 1) < 0:
            break
        indices.append(index)
    opened = prompt.kind not in ("clip", "motion") and rng.random() < OPENING_RATE
    if opened and text.lower().startswith(("a ", "an ")):
        text = f"{pick(rng, OPENINGS)} {text[0].lower()}{text[1:]}"
    full_stop = "." if prompt.text.endswith(".") else ""
    return ", ".join((text, *(details[index] for index in sorted(indices)))) + full_stop


def keeps_content(prompt: str, answer: str) -> bool:
    """Whether the answer contains every content word of the prompt, as often as the prompt does."""
    return not Counter(content_words(prompt)) - Counter(content_words(answer))


def added_words(prompt: str, answer: str) -> int:
    """The number of words that the answer has in addition to the prompt's."""
    return (Counter(words_of(answer)) - Counter(words_of(prompt))).total()


def _text(kind: str, rng: np.random.Generator, *, held_out: bool) -> str:
    """A random prompt of a kind."""
    match kind:
        case "picture":
            return caption(random_scene(rng, held_out=held_out), rng, complete=held_out)
        case "clip":
            return clip_caption(random_clip(rng, held_out=held_out), rng, complete=held_out)
        case "motion":
            return motion_prompt(rng, held_out=held_out)
        case "list":
            return _word_list(rng)
        case _:
            return scene_prompt(rng, held_out=held_out)


def _word_list(rng: np.random.Generator) -> str:
    """Words in random order: to repeat them, a model has to copy. Some lists draw from a few words only, so
    that pairs of words occur several times and copying takes more context than one word."""
    separator = " " if rng.random() < 0.7 else ", "
    count = rng.integers(2, 12 if rng.random() < 0.85 else 30)
    made_up = pick(rng, (0.1, 0.4, 0.9))
    words = [made_up_word(rng) if rng.random() < made_up else pick(rng, VOCABULARY) for _ in range(count)]
    if rng.random() < REPETITION_RATE:
        pool = words[: rng.integers(2, 7)]
        words = [pick(rng, pool) for _ in range(rng.integers(5, 20))]
    if rng.random() < 0.2:
        words.insert(rng.integers(len(words) + 1), str(rng.integers(0, 2100)))
    if rng.random() < 0.2:
        index = rng.integers(len(words))
        words[index] = words[index].capitalize()
    if rng.random() < 0.4:
        index = rng.integers(len(words))
        words[index] = pick(rng, MARKUP).format(words[index])
    return separator.join(words)


def _vary_surface(text: str, rng: np.random.Generator) -> str:
    """The text, sometimes with a capital letter or a full stop."""
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
    return f"{text}." if rng.random() < 0.15 else text
