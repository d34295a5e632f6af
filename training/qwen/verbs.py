"""Verbs of motion in every inflection, with the adverbs, directions and places that go with them."""

from __future__ import annotations

from dataclasses import dataclass

from training.qwen.vocabulary import COMMON_VERBS

VOWELS = "aeiou"
DOUBLING = frozenset(
    ("hop", "run", "swim", "spin", "dip", "drop", "flip", "skip", "slip", "skid", "step", "trot", "jog",
     "zip", "plod", "wag", "sit", "get", "bob", "stop", "travel", "zigzag"),
)  # fmt: skip
"""Verbs that double their last consonant before -ing and -ed."""

IRREGULAR = {
    "go": ("went", "gone"), "fly": ("flew", "flown"), "slide": ("slid", "slid"), "run": ("ran", "run"),
    "rise": ("rose", "risen"), "fall": ("fell", "fallen"), "swim": ("swam", "swum"),
    "sink": ("sank", "sunk"), "swing": ("swung", "swung"), "spin": ("spun", "spun"),
    "sweep": ("swept", "swept"), "creep": ("crept", "crept"), "come": ("came", "come"),
    "drive": ("drove", "driven"), "ride": ("rode", "ridden"), "grow": ("grew", "grown"),
    "shrink": ("shrank", "shrunk"), "stand": ("stood", "stood"), "sit": ("sat", "sat"),
    "spread": ("spread", "spread"), "blow": ("blew", "blown"), "bend": ("bent", "bent"),
    "leap": ("leapt", "leapt"), "stay": ("stayed", "stayed"), "keep": ("kept", "kept"),
    "get": ("got", "got"), "make": ("made", "made"), "take": ("took", "taken"), "see": ("saw", "seen"),
    "shine": ("shone", "shone"), "sleep": ("slept", "slept"), "eat": ("ate", "eaten"),
    "hold": ("held", "held"), "wear": ("wore", "worn"), "lie": ("lay", "lain"), "read": ("read", "read"),
    "write": ("wrote", "written"), "break": ("broke", "broken"), "build": ("built", "built"),
    "throw": ("threw", "thrown"), "catch": ("caught", "caught"), "hide": ("hid", "hidden"),
    "drink": ("drank", "drunk"), "speed": ("sped", "sped"),
    "sing": ("sang", "sung"), "swell": ("swelled", "swollen"),
}  # fmt: skip
"""Past tense and past participle by verb."""


@dataclass(frozen=True, slots=True)
class Verb:
    """The five forms of an English verb, like move, moves, moving, moved, moved."""

    base: str
    third: str
    present: str
    past: str
    participle: str

    def form(self, name: str) -> str:
        """The form named `base`, `third`, `present`, `past` or `participle`."""
        return str(getattr(self, name))

    @property
    def forms(self) -> tuple[str, ...]:
        """Every form once, the base form first."""
        return tuple(dict.fromkeys((self.base, self.third, self.present, self.past, self.participle)))


def inflect(base: str) -> Verb:
    """The forms of a verb by the rules of English spelling and the tables `IRREGULAR` and `DOUBLING`."""
    stem = base + base[-1] if base in DOUBLING else base
    consonant_y = base.endswith("y") and base[-2] not in VOWELS
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        third = f"{base}es"
    else:
        third = f"{base[:-1]}ies" if consonant_y else f"{base}s"
    if base.endswith("ie"):
        present = f"{base[:-2]}ying"
    else:
        present = f"{base[:-1]}ing" if _has_silent_e(base) else f"{stem}ing"
    regular = f"{base}d" if base.endswith("e") else f"{base[:-1]}ied" if consonant_y else f"{stem}ed"
    past, participle = IRREGULAR.get(base, (regular, regular))
    return Verb(base, third, present, past, participle)


def _has_silent_e(base: str) -> bool:
    """Whether the final e of a verb is dropped before a suffix."""
    return base.endswith("e") and not base.endswith(("ee", "oe", "ye"))


MOTION_VERBS = tuple(
    inflect(base)
    for base in (
        "move", "go", "slide", "drift", "travel", "fly", "float", "glide", "roll", "run", "rise", "fall",
        "sink", "climb", "drop", "walk", "swim", "hop", "jump", "bounce", "race", "rush", "crawl", "creep",
        "wander", "sail", "spin", "turn", "shift", "head", "come", "pass", "swing", "step", "march", "dash",
        "slip", "sweep", "push", "pull", "descend", "ascend", "lift", "leap", "stroll", "cruise", "skate",
        "ride", "drive", "bob", "sway", "return", "start", "stop", "stay", "wait", "hurry", "fade", "blow",
        "speed",
    )
)  # fmt: skip

SIZE_VERBS = tuple(
    inflect(base) for base in ("grow", "shrink", "expand", "swell", "shorten", "stretch", "widen", "change")
)
"""Verbs of growing and shrinking, which take no direction."""

UNSEEN_VERBS = tuple(
    inflect(base)
    for base in ("tumble", "zigzag", "swoop", "scurry", "plunge", "hover", "trundle", "meander", "veer",
                 "gallop", "waltz", "nudge")
)  # fmt: skip
"""Verbs that no training text contains in any form."""

UNSEEN_VERB_FORMS = frozenset(form for verb in UNSEEN_VERBS for form in verb.forms)

DIRECTIONS = (
    "left", "right", "up", "down", "leftward", "rightward", "upward", "downward", "leftwards", "rightwards",
    "upwards", "downwards", "to the left", "to the right", "to the top", "to the bottom", "to the left side",
    "to the right side", "toward the left", "toward the right", "towards the left", "towards the right",
    "towards the top", "toward the bottom", "from left to right", "from right to left",
    "from top to bottom", "from the bottom to the top", "from the left to the right",
    "from the right to the left", "from bottom to top", "off to the left", "off to the right", "straight up",
    "straight down", "up and down", "left and right", "left then right", "right, then left",
    "up, then down", "back and forth", "forward", "backward", "forwards", "backwards", "away", "across",
    "across the screen", "across the picture", "to the upper left", "to the upper right",
    "to the lower left", "to the lower right", "into the upper left corner", "into the lower right corner",
    "towards the centre", "toward the middle", "to the centre", "diagonally", "around", "in a circle",
    "sideways", "north", "south", "east", "west", "out of the frame", "along the bottom", "along the top",
)  # fmt: skip

CORNERS = (
    "in the upper left", "in the upper right", "in the lower left", "in the lower right",
    "in the top left corner", "in the top right corner", "in the bottom left corner",
    "in the bottom right corner", "at the upper edge", "at the lower edge", "at the left edge",
    "at the right edge", "near the top", "near the bottom", "near the left edge", "near the right edge",
    "on the far left", "on the far right", "in the middle", "in the centre", "in the center",
    "on the left", "on the right", "at the top", "at the bottom", "in the background", "in the foreground",
    "far away", "close to the camera", "in the corner", "in the distance", "in the lower part",
    "in the upper half", "on the left side", "on the right side",
)  # fmt: skip

ADVERBS = (
    "slowly", "quickly", "gently", "smoothly", "steadily", "softly", "quietly", "suddenly", "fast", "calmly",
    "lightly", "evenly", "rapidly", "lazily", "gracefully", "always", "again", "twice", "once", "a little",
)  # fmt: skip

EVERY_FORM = tuple(
    form for verb in (*MOTION_VERBS, *SIZE_VERBS, *map(inflect, COMMON_VERBS)) for form in verb.forms
)
"""All forms of the verbs of the vocabulary."""
