"""What a scene or a clip is called, in several wordings.

A caption tells the shape always and the rest often: what it leaves out may be anything in the picture, which
is how a model learns that "red" alone means something. `complete` captions tell all that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.world import Clip, Scene

PLACES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part", "at the lower edge"),
    "centre": ("in the centre", "in the center", "in the middle"),
}

SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "big": ("big", "large")}

MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "moving to the left", "sliding left"),
    "right": ("moving right", "moving to the right", "sliding right"),
    "up": ("moving up", "moving upwards", "rising"),
    "down": ("moving down", "moving downwards", "falling"),
    "growing": ("growing", "getting bigger", "growing larger"),
    "shrinking": ("shrinking", "getting smaller", "shrinking away"),
}

LEADS = ("a picture of", "an image of", "a drawing of", "a simple picture of", "an illustration of")
TAILS = (
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

TELL_SIZE = 0.5
TELL_COLOUR = 0.9
TELL_BACKGROUND = 0.85
TELL_PLACE = 0.85
TELL_CENTRE = 0.5
"""The centre is where a shape is expected when nobody says where."""

DECORATE = 0.2


@dataclass(frozen=True, slots=True)
class Told:
    """The words of one caption, empty where it says nothing: adjectives and noun, where, on what."""

    thing: str
    where: str
    background: str


def caption(scene: Scene, draw: np.random.Generator, *, complete: bool = False) -> str:
    """One wording of a scene; equal draws give equal captions."""
    place = TELL_CENTRE if scene.position == "centre" else TELL_PLACE
    told = Told(
        thing=_thing(scene, draw, complete=complete),
        where=_pick(draw, PLACES[scene.position]) if complete or draw.random() < place else "",
        background=scene.background if complete or draw.random() < TELL_BACKGROUND else "",
    )
    return _decorated(_worded(told, draw), draw)


def clip_caption(clip: Clip, draw: np.random.Generator, *, complete: bool = False) -> str:
    """One wording of a clip; its motion is always told."""
    told = Told(
        thing=_thing(clip, draw, complete=complete),
        where=_pick(draw, MOTION_WORDS[clip.motion]),
        background=clip.background if complete or draw.random() < TELL_BACKGROUND else "",
    )
    return _decorated(_worded(told, draw), draw)


def _thing(what: Scene | Clip, draw: np.random.Generator, *, complete: bool) -> str:
    """Like "big red circle"; a growing shape is neither big nor small."""
    sized = not (isinstance(what, Clip) and what.motion in ("growing", "shrinking"))
    size = _pick(draw, SIZE_WORDS[what.size]) if sized and draw.random() < TELL_SIZE else ""
    colour = what.colour if complete or draw.random() < TELL_COLOUR else ""
    return " ".join(word for word in (size, colour, what.shape) if word)


def _worded(told: Told, draw: np.random.Generator) -> str:
    """The words in one of six orders."""
    thing, where = _with_article(told.thing), told.where
    ground = _with_article(f"{told.background} background") if told.background else ""
    match draw.integers(6):
        case 0:
            return _joined(" ", thing, where, ground and f"on {ground}")
        case 1:
            return _joined(" ", thing, ground and f"on {ground}", where)
        case 2:
            return _joined(", ", told.background and f"{told.background} background", told.thing, where)
        case 3:
            return _joined(", ", _joined(" ", thing, where), ground)
        case 4:
            return _joined(
                ", ", _joined(" ", told.thing, where), told.background and f"{told.background} background"
            )
        case _:
            return _joined(
                ", ", _joined(" ", thing, where), told.background and f"the background is {told.background}"
            )


def _decorated(text: str, draw: np.random.Generator) -> str:
    """Sometimes with words around it that say nothing about the scene."""
    if draw.random() < DECORATE and text.startswith(("a ", "an ")):
        text = f"{_pick(draw, LEADS)} {text}"
    while draw.random() < DECORATE:
        text = f"{text}, {_pick(draw, TAILS)}"
    return text


def _joined(by: str, *parts: str) -> str:
    return by.join(part for part in parts if part)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(draw: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[draw.integers(len(words))]
