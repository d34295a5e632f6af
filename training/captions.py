"""Captions of scenes and clips in several wordings.

A caption always names the shape and often the other attributes. What it leaves out varies in the pictures, so
that every word is learned on its own. `complete` captions name every attribute that the evaluation measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.scenes import Clip, Scene

POSITION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part", "at the lower edge"),
    "centre": ("in the centre", "in the center", "in the middle"),
}

SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "big": ("big", "large")}

MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "moving to the left", "sliding left"),
    "right": ("moving right", "moving to the right", "sliding right"),
    "up": ("moving up", "moving upwards", "rising"),
    "down": ("moving down", "moving downwards", "falling"),
    "growing": ("growing", "getting bigger", "growing larger"),
    "shrinking": ("shrinking", "getting smaller", "shrinking away"),
}

PREFIXES = ("a picture of", "an image of", "a drawing of", "a simple picture of", "an illustration of")
SUFFIXES = (
    "crisp edges",
    "flat design",
    "clean and simple",
    "minimalist",
    "sharp focus",
    "high quality",
    "plain colours",
    "soft even light",
    "bold and clear",
)

SIZE_RATE = 0.5
COLOUR_RATE = 0.9
BACKGROUND_RATE = 0.85
POSITION_RATE = 0.85
CENTRE_RATE = 0.5
"""Proportions of captions that name an attribute; the centre is the default position and named less often."""

DECORATION_RATE = 0.2


@dataclass(frozen=True, slots=True)
class CaptionParts:
    """The parts of a caption: adjectives and noun, position or motion, background. A part may be empty."""

    noun_phrase: str
    phrase: str
    background: str


def caption(scene: Scene, rng: np.random.Generator, *, complete: bool = False) -> str:
    """A random caption of a scene; equal generators give equal captions."""
    rate = CENTRE_RATE if scene.position == "centre" else POSITION_RATE
    parts = CaptionParts(
        noun_phrase=_noun_phrase(scene, rng, complete=complete),
        phrase=_pick(rng, POSITION_PHRASES[scene.position]) if complete or rng.random() < rate else "",
        background=scene.background if complete or rng.random() < BACKGROUND_RATE else "",
    )
    return _decorate(_arrange(parts, rng), rng)


def clip_caption(clip: Clip, rng: np.random.Generator, *, complete: bool = False) -> str:
    """A random caption of a clip; it always names the motion."""
    parts = CaptionParts(
        noun_phrase=_noun_phrase(clip, rng, complete=complete),
        phrase=_pick(rng, MOTION_PHRASES[clip.motion]),
        background=clip.background if complete or rng.random() < BACKGROUND_RATE else "",
    )
    return _decorate(_arrange(parts, rng), rng)


def _noun_phrase(subject: Scene | Clip, rng: np.random.Generator, *, complete: bool) -> str:
    """Adjectives and noun, like "big red circle". Growing and shrinking shapes get no size."""
    sized = not (isinstance(subject, Clip) and subject.motion in ("growing", "shrinking"))
    size = _pick(rng, SIZE_WORDS[subject.size]) if sized and rng.random() < SIZE_RATE else ""
    colour = subject.colour if complete or rng.random() < COLOUR_RATE else ""
    return " ".join(word for word in (size, colour, subject.shape) if word)


def _arrange(parts: CaptionParts, rng: np.random.Generator) -> str:
    """The parts in one of six orders."""
    noun_phrase, phrase = _with_article(parts.noun_phrase), parts.phrase
    ground = _with_article(f"{parts.background} background") if parts.background else ""
    match rng.integers(6):
        case 0:
            return _joined(" ", noun_phrase, phrase, ground and f"on {ground}")
        case 1:
            return _joined(" ", noun_phrase, ground and f"on {ground}", phrase)
        case 2:
            return _joined(
                ", ", parts.background and f"{parts.background} background", parts.noun_phrase, phrase
            )
        case 3:
            return _joined(", ", _joined(" ", noun_phrase, phrase), ground)
        case 4:
            return _joined(
                ", ",
                _joined(" ", parts.noun_phrase, phrase),
                parts.background and f"{parts.background} background",
            )
        case _:
            return _joined(
                ", ",
                _joined(" ", noun_phrase, phrase),
                parts.background and f"the background is {parts.background}",
            )


def _decorate(text: str, rng: np.random.Generator) -> str:
    """The text, sometimes with phrases around it that are the same for all scenes."""
    if rng.random() < DECORATION_RATE and text.startswith(("a ", "an ")):
        text = f"{_pick(rng, PREFIXES)} {text}"
    while rng.random() < DECORATION_RATE:
        text = f"{text}, {_pick(rng, SUFFIXES)}"
    return text


def _joined(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]
