"""The words of the corpus beside those of the world of shapes."""

from __future__ import annotations

import re

from training.world import COLOURS

ANIMALS = (
    "cat", "dog", "horse", "cow", "sheep", "goat", "fox", "wolf", "bear", "deer", "rabbit", "mouse", "lion",
    "tiger", "elephant", "giraffe", "zebra", "monkey", "owl", "eagle", "swan", "duck", "goose", "hen",
    "parrot", "crow", "frog", "turtle", "snake", "fish", "whale", "dolphin", "bee", "butterfly", "beetle",
    "squirrel", "hedgehog", "otter", "seal", "penguin", "camel", "donkey", "pony", "bird", "puppy", "kitten",
)  # fmt: skip

THINGS = (
    "house", "barn", "boat", "bridge", "tower", "mill", "tent", "bench", "chair", "table", "lamp", "cup",
    "bowl", "basket", "book", "bottle", "kite", "balloon", "train", "car", "bicycle", "wagon", "gate",
    "fence", "door", "window", "clock", "bell", "drum", "apple", "pear", "lemon", "plum", "leaf", "flower",
    "rose", "tulip", "mushroom", "stone", "shell", "feather", "candle", "umbrella", "hat", "ball", "pencil",
)  # fmt: skip

PLURALS = {
    "sheep": "sheep", "fish": "fish", "deer": "deer", "mouse": "mice", "wolf": "wolves", "goose": "geese",
    "fox": "foxes", "butterfly": "butterflies", "pony": "ponies", "puppy": "puppies",
}  # fmt: skip

LANDS = (
    "hill", "mountain", "valley", "meadow", "forest", "lake", "river", "beach", "desert", "island", "field",
    "garden", "cliff", "waterfall", "canyon", "pond", "village", "harbour", "road", "path", "orchard",
    "glacier", "volcano", "swamp", "plain", "coast", "dune", "cave", "wood", "stream",
)  # fmt: skip

GROUNDS = (
    "mat", "rug", "sofa", "rock", "roof", "wall", "branch", "lawn", "blanket", "carpet", "floor", "shelf",
    "cushion", "log", "step", "bed", "cart", "stool", "mound", "plank", "pillow", "box", "tray", "stage",
)  # fmt: skip

SKIES = ("sky", "cloud", "moon", "sun", "mist", "storm", "rainbow", "sunrise", "sunset", "haze")

QUALITIES = (
    "old", "young", "tall", "tiny", "round", "quiet", "wide", "narrow", "wooden", "bright", "dark", "sleepy",
    "happy", "calm", "steep", "smooth", "wild", "gentle", "striped", "spotted", "small", "big", "large",
    "little", "long", "short", "grey", "brown", "golden", "silver",
)  # fmt: skip

DOINGS = (
    "sleeping", "running", "sitting", "standing", "walking", "jumping", "resting", "swimming", "flying",
    "eating", "playing", "drinking", "waiting", "looking up", "moving slowly", "turning around",
)  # fmt: skip

RELATIONS = ("on", "near", "beside", "under", "behind", "in front of", "next to", "above", "by")

TIMES = ("in the morning", "at noon", "in the evening", "at night", "in winter", "in summer", "in spring",
         "in autumn", "after the rain", "at dawn", "at dusk")  # fmt: skip

NAMES = ("Mira", "Tom", "Lena", "Omar", "Ada", "Ben", "Sofia", "Noah", "Yuki", "Ines", "Paul", "Rosa",
         "Kofi", "Emma", "Luca", "Nina")  # fmt: skip

STARTS = (
    "b",
    "d",
    "f",
    "g",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "ch",
    "sh",
    "tr",
    "pl",
    "h",
    "w",
)
ENDS = ("a", "e", "i", "o", "u", "an", "er", "in", "on", "ow", "ie", "ar", "el", "um", "y", "ock", "ight")
"""Of syllables of made-up words."""

NUMBERS = ("two", "three", "four", "five", "seven", "ten")

PLAIN_DETAILS = (
    "crisp edges", "flat design", "clean and simple", "minimalist", "sharp focus", "high quality",
    "plain colours", "soft even light", "bold and clear", "smooth outlines", "an even surface",
    "a clear outline", "balanced composition", "no clutter", "a plain matte texture", "well defined edges",
)  # fmt: skip
"""Of pictures of one shape: mostly what captions of the world add as well."""

MOVING_DETAILS = (
    "smooth steady motion", "a fixed camera", "an even pace", "no flicker", "crisp edges", "flat design",
    "clean and simple", "sharp focus", "plain colours", "soft even light", "bold and clear",
)  # fmt: skip

SCENIC_DETAILS = (
    "soft natural light", "gentle shadows", "fine surface texture", "sharp focus", "a wide composition",
    "rich natural detail", "clear air", "a calm mood", "balanced composition", "warm side light",
    "delicate fine texture", "crisp edges", "a softly blurred distance", "high quality", "even daylight",
    "a clear foreground", "subtle reflections", "depth and clear layers",
)  # fmt: skip

UNSEEN = (
    "tractor", "lighthouse", "violin", "kangaroo", "pyramid", "robot", "saxophone", "castle", "llama",
    "submarine", "cactus", "helicopter", "walrus", "teapot", "windmill", "flamingo", "anvil", "dragonfly",
)  # fmt: skip
"""Nouns that no training text contains."""

FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "on", "in", "at", "of", "is", "are", "and", "with", "to", "by", "it", "its", "there",
     "this", "that", "as", "for", "from", "into")
)  # fmt: skip
"""Words that carry nothing an enriched prompt would have to keep."""


def words_of(text: str) -> list[str]:
    """The words in lower case, without marks."""
    return re.findall(r"[^\W_]+", text.lower())


def content_words(text: str) -> list[str]:
    """Nouns, colours, places, motions, qualities: every word that is no function word."""
    return [word for word in words_of(text) if word not in FUNCTION_WORDS]


def colours_of(text: str) -> list[str]:
    """The colours of the world that a text names, in its order."""
    return [word for word in words_of(text) if word in COLOURS]
