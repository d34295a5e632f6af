"""Prompts and what they look like enriched.

An enriched prompt repeats the prompt word for word and adds plain visual detail: a small model can learn to
copy, and a caller gets every noun, colour, place and motion back. Some training prompts have made-up words or
no order at all, so that what is learnt is copying and not a list of nouns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.captions import LEADS, caption, clip_caption
from training.qwen import words
from training.qwen.words import content_words, words_of
from training.shapes import SHAPES
from training.world import COLOURS, is_held_out, random_clip, random_scene

ADDED_WORDS = 4
"""How many words an enriched prompt has more than its prompt, at least."""

DETAILS = {
    "picture": words.PLAIN_DETAILS,
    "clip": words.MOVING_DETAILS,
    "scene": words.SCENIC_DETAILS,
    "list": words.SCENIC_DETAILS,
}
KINDS = tuple(DETAILS)
TRAINED_SHARES = (0.34, 0.22, 0.32, 0.12)
STRANGE = 0.6
"""The share of training scenes in which nouns may be made-up words."""

OPENINGS = ("a clear picture of", "a detailed view of", "a well lit view of")
OPENED = 0.06

MARKED = ("({}:1.2)", "({})", '"{}"', "{}!", "{}-like", "{}: ", "[{}]", "{}?", "{}'s", "{};")
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
"""Around a prompt where it is clear that it is to be enriched."""

KNOWN = (*words.ANIMALS, *words.THINGS, *words.LANDS, *words.QUALITIES, *SHAPES, *COLOURS)

Noun = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a caller asks for; `kind` is one of `KINDS` and decides which details fit."""

    text: str
    kind: str


def random_prompt(draw: np.random.Generator) -> Prompt:
    """A prompt of a combination that may be trained on; equal draws give equal prompts."""
    kind = str(draw.choice(KINDS, p=TRAINED_SHARES))
    return Prompt(_surfaced(_text(kind, draw, held_out=False), draw), kind)


def held_out_prompt(draw: np.random.Generator) -> Prompt:
    """A prompt of a combination that no training text has, of known words: a picture, a clip or a scene."""
    kind = KINDS[draw.integers(3)]
    return Prompt(_surfaced(_text(kind, draw, held_out=True), draw), kind)


def unseen_prompt(draw: np.random.Generator) -> Prompt:
    """A scene one of whose nouns no training text has."""
    noun, land = pick(draw, words.UNSEEN), pick(draw, words.LANDS)
    colour = pick(draw, tuple(COLOURS))
    text = pick(
        draw,
        (
            f"a {colour} {noun} {pick(draw, words.RELATIONS)} a {land}",
            f"a {pick(draw, words.QUALITIES)} {noun} and a {colour} {pick(draw, words.ANIMALS)}",
            f"a {noun} on a {colour} background",
        ),
    )
    return Prompt(articled(text), "scene")


def enriched(prompt: Prompt, draw: np.random.Generator) -> str:
    """The prompt with two to four phrases of visual detail, more than `ADDED_WORDS` words.

    They keep the order of `DETAILS`, so that a model that follows the likeliest word says none twice.
    """
    text = prompt.text.rstrip(".")
    choices = [one for one in DETAILS[prompt.kind] if one not in text]
    added: list[int] = []
    more = draw.integers(0, 2)
    for at in draw.permutation(len(choices)):
        if len(words_of(" ".join(choices[k] for k in added))) > ADDED_WORDS and (more := more - 1) < 0:
            break
        added.append(at)
    if text.lower().startswith(("a ", "an ")) and draw.random() < OPENED:
        text = f"{pick(draw, OPENINGS)} {text[0].lower()}{text[1:]}"
    end = "." if prompt.text.endswith(".") else ""
    return ", ".join((text, *(choices[at] for at in sorted(added)))) + end


def kept(prompt: str, answer: str) -> bool:
    """Whether every noun, colour, place and motion word of the prompt is in the answer, as often."""
    return not Counter(content_words(prompt)) - Counter(content_words(answer))


def added_words(prompt: str, answer: str) -> int:
    """How many words the answer has beyond the prompt's."""
    return (Counter(words_of(answer)) - Counter(words_of(prompt))).total()


def pick(draw: np.random.Generator, choices: Sequence[str]) -> str:
    """One of the choices."""
    return choices[int(draw.integers(len(choices)))]


def made_up(draw: np.random.Generator) -> str:
    """A word that nobody knows: of syllables, of two known words, or of any letters."""
    way = draw.random()
    if way < 0.2:
        word = "".join(chr(97 + k) for k in draw.integers(0, 26, draw.integers(3, 9)))
    elif way < 0.6:
        one, other = (pick(draw, KNOWN) for _ in range(2))
        word = one[: draw.integers(1, len(one))] + other[draw.integers(1, len(other)) :]
    else:
        syllables = draw.integers(2, 4)
        word = "".join(pick(draw, words.STARTS) + pick(draw, words.ENDS) for _ in range(syllables))
    return made_up(draw) if word in words.UNSEEN else word


def articled(text: str) -> str:
    """The same text with "an" where it belongs."""
    parts = text.split(" ")
    for at, word in enumerate(parts[:-1]):
        if word == "a" and parts[at + 1][:1] in tuple("aeiou"):
            parts[at] = "an"
    return " ".join(parts)


def _text(kind: str, draw: np.random.Generator, *, held_out: bool) -> str:
    match kind:
        case "picture":
            return caption(random_scene(draw, held_out=held_out), draw, complete=held_out)
        case "clip":
            return clip_caption(random_clip(draw, held_out=held_out), draw, complete=held_out)
        case "list":
            return _word_list(draw)
        case _:
            return _scene(draw, held_out=held_out)


def _scene(draw: np.random.Generator, *, held_out: bool) -> str:
    """A landscape, an animal or a thing; sometimes two of them, on the same side of the split."""
    text = _one_scene(draw, held_out=held_out)
    if draw.random() < 0.15:
        joint = pick(draw, (" and ", ", with ", " next to ", ". Behind it ", "; far away "))
        text = f"{text}{joint}{_one_scene(draw, held_out=held_out)}"
    if draw.random() < 0.2:
        text = f"{text} {pick(draw, words.TIMES)}"
    if draw.random() < 0.08 and text.startswith("a"):
        text = f"{pick(draw, LEADS)} {text}"
    return text


def _one_scene(draw: np.random.Generator, *, held_out: bool) -> str:
    """Drawn until its nouns and colours are on the asked side of the split."""
    strange = not held_out and draw.random() < STRANGE

    def noun(choices: Sequence[str]) -> str:
        return made_up(draw) if strange and draw.random() < 0.5 else pick(draw, choices)

    while True:
        text = articled(_pattern(draw, noun))
        if is_held_out(("scene", *sorted(content_words(text)))) == held_out:
            return text


def _pattern(draw: np.random.Generator, noun: Noun) -> str:
    colours = tuple(COLOURS)
    one, other = (pick(draw, colours) for _ in range(2))
    animal, thing, land = noun(words.ANIMALS), noun(words.THINGS), noun(words.LANDS)
    quality, relation, doing = (
        pick(draw, choices) for choices in (words.QUALITIES, words.RELATIONS, words.DOINGS)
    )
    ground, sky = noun(words.GROUNDS), noun(words.SKIES)
    patterns = (
        f"a {one} {land} under a {other} {sky}",
        f"a {one} {animal} on a {other} {ground}",
        f"a {quality} {land} with a {one} {thing}",
        f"a {one} {thing} {relation} a {quality} {land}",
        f"a {animal} {doing} {relation} a {one} {thing}",
        f"the {quality} {animal} is {doing}",
        f"{pick(draw, words.NUMBERS)} {one} {words.PLURALS.get(animal, f'{animal}s')} {relation} the {land}",
        f"{quality} {animal}, {one} {ground}, {other} {sky}",
        f"{one} {thing} and {other} {thing if draw.random() < 0.1 else noun(words.THINGS)}",
        f"a {land} {relation} a {quality} {thing}",
        f"{animal} {doing} in the {land}",
        f"a {one} {thing}",
        f"the {sky} above the {one} {land} is {other}",
        f"a {quality} {one} {animal} {relation} the {thing}",
    )
    return pick(draw, patterns)


def _word_list(draw: np.random.Generator) -> str:
    """Words without any order: nothing but copying helps."""
    every = (
        *words.ANIMALS, *words.THINGS, *words.LANDS, *words.GROUNDS, *words.SKIES, *words.QUALITIES,
        *COLOURS, *SHAPES, *words.RELATIONS, *words.DOINGS, "a", "the", "of", "is", "and",
    )  # fmt: skip
    by = " " if draw.random() < 0.7 else ", "
    count = draw.integers(2, 12 if draw.random() < 0.8 else 30)
    drawn = [made_up(draw) if draw.random() < 0.4 else pick(draw, every) for _ in range(count)]
    if draw.random() < 0.2:
        drawn.insert(draw.integers(len(drawn) + 1), str(draw.integers(0, 2100)))
    if draw.random() < 0.4:
        at = draw.integers(len(drawn))
        drawn[at] = pick(draw, MARKED).format(drawn[at])
    return by.join(drawn)


def _surfaced(text: str, draw: np.random.Generator) -> str:
    """Sometimes with a capital letter or a full stop."""
    if draw.random() < 0.25:
        text = text[0].upper() + text[1:]
    return f"{text}." if draw.random() < 0.15 else text
