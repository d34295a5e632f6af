"""Word lists of the corpus, in addition to the shapes and colours of the scenes, and how texts are split into
words."""

from __future__ import annotations

import re

from training.captions import SUFFIXES
from training.scenes import COLOURS

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

SYLLABLE_STARTS = (
    "b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "ch", "sh", "tr", "pl", "h", "w",
)  # fmt: skip
SYLLABLE_ENDS = (
    "a", "e", "i", "o", "u", "an", "er", "in", "on", "ow", "ie", "ar", "el", "um", "y", "ock", "ight",
)  # fmt: skip
"""The syllables of made-up words."""

NUMBERS = ("two", "three", "four", "five", "seven", "ten")

SHAPE_SYNONYMS = (
    "ball", "disc", "disk", "box", "cube", "block", "dot", "spot", "hoop", "wheel", "globe", "sphere",
    "bubble", "balloon", "marble", "brick", "tile", "cone", "rhombus", "rectangle", "oval", "ellipse",
    "pentagon", "hexagon", "crescent", "arrow", "heart", "coin", "plate", "button", "gem", "shape",
    "figure", "object", "round shape", "rocket", "truck", "ship", "plane", "bus", "drop", "snowflake",
    "cloud", "comet", "puck",
)  # fmt: skip

SIZE_ADJECTIVES = ("small", "big", "large", "little", "tiny", "huge", "medium", "wide", "tall", "round",
                   "bright", "dark", "shiny", "plain", "single", "soft", "solid")  # fmt: skip

PREPOSITIONS = ("on", "near", "beside", "under", "behind", "in front of", "next to", "above", "by", "over",
                "across", "through", "along", "past", "towards", "below", "around", "between", "into",
                "beyond")  # fmt: skip

COMMON = (
    "actor", "afternoon", "air", "airport", "angel", "ancient", "arch", "arm", "armour", "artist", "autumn",
    "baby", "back", "baker", "bay", "beautiful", "beard", "bedroom", "birch", "blossom", "bold", "bone",
    "boots", "bottom", "bouquet", "boy", "bread", "breeze", "brick", "broken", "brush", "building", "bush",
    "cafe", "cake", "calm", "camera", "camp", "canal", "carnival", "carved", "ceiling", "cellar", "chalk",
    "charcoal", "cheese", "cherry", "child", "children", "chimney", "church", "cinematic", "city", "clean",
    "clear", "close", "cloth", "coat", "coffee", "cold", "colourful", "cook", "copper", "corn", "corner",
    "cotton", "country", "couple", "cracked", "crane", "crowd", "crown", "crystal", "curtain", "curved",
    "dance", "dancer", "dawn", "day", "deep", "delicate", "detailed", "dirt", "doctor", "dragon", "dream",
    "dress", "dry", "dusk", "dust", "earth", "east", "edge", "egg", "elegant", "empty", "engine", "evening",
    "face", "factory", "fair", "farm", "farmer", "fern", "festival", "fire", "fisherman", "flag", "flame",
    "foggy", "food", "foot", "fountain", "frame", "fresh", "friend", "frost", "fruit", "full", "fur",
    "giant", "girl", "glass", "gloves", "gold", "grass", "gravel", "green", "guitar", "hair", "hall",
    "hand", "happy", "hay", "head", "heavy", "high", "home", "honey", "hot", "hotel", "ice", "iron", "ivy",
    "jacket", "jar", "journey", "juice", "jungle", "kettle", "key", "king", "kitchen", "knight", "lace",
    "ladder", "lady", "lantern", "leather", "letter", "library", "light", "lightning", "lily", "living",
    "long", "low", "machine", "magic", "man", "map", "maple", "market", "mask", "men", "metal", "midnight",
    "milk", "mirror", "misty", "modern", "morning", "moss", "mud", "museum", "music", "narrow", "neon",
    "nest", "night", "noble", "noise", "north", "nurse", "oak", "ocean", "office", "oil", "olive", "open",
    "outside", "oven", "palace", "palm", "paper", "parade", "park", "party", "pastel", "peaceful", "peak",
    "pebble", "people", "person", "photo", "piano", "picnic", "pilot", "pine", "pirate", "planet", "plant",
    "plastic", "pool", "poppy", "porch", "portrait", "pot", "power", "pretty", "prince", "princess",
    "pumpkin", "queen", "quiet", "railway", "rain", "rainy", "ray", "red", "reflection", "ribbon", "rice",
    "rope", "royal", "ruin", "runner", "rusty", "sail", "sailor", "salt", "sand", "sandy", "scarf", "scene",
    "school", "sea", "season", "shadow", "sharp", "shiny", "shop", "shore", "side", "silk", "silent",
    "simple", "singer", "sister", "sketch", "skin", "sky", "smile", "smoke", "snow", "snowy", "soil",
    "soldier", "south", "space", "sparkling", "spring", "stairs", "star", "starry", "station", "statue",
    "steam", "steel", "stormy", "street", "strong", "summer", "sunlight", "sunny", "sweet", "sword", "tail",
    "tall", "tea", "teacher", "temple", "thick", "thin", "throne", "toast", "town", "toy", "track",
    "traffic", "trail", "tree", "tropical", "trumpet", "tunnel", "twilight", "valley", "vase", "velvet",
    "view", "vintage", "violet", "wall", "warm", "water", "watercolour", "wave", "waves", "weather", "west",
    "wet", "wheat", "wind", "windy", "wine", "wing", "wings", "winter", "witch", "wizard", "woman", "women",
    "wooden", "wool", "world", "worn", "yard", "young", "zoo", "while", "before", "after", "during",
    "against", "inside", "without", "very", "really", "some", "many", "few", "every", "both", "other",
    "another", "two", "three", "first", "last", "his", "her", "their", "them", "they", "he", "she", "who",
    "where", "when", "then", "than", "but", "or", "not", "has", "have", "was", "were", "be", "been",
    "being", "like", "one",
)  # fmt: skip
"""Frequent English words of picture prompts, which only lists of words and motion prompts draw from."""

COMMON_VERBS = (
    "shine", "glow", "burn", "sleep", "eat", "drink", "play", "look", "smile", "laugh", "sing", "hold",
    "carry", "wear", "sit", "stand", "lie", "read", "write", "paint", "watch", "follow", "chase", "reach",
    "open", "close", "break", "melt", "bloom", "flow", "rain", "snow", "flicker", "sparkle", "float",
    "dream", "cook", "build", "throw", "catch", "kick", "wave", "touch", "hide", "land", "cross", "fill",
    "cover", "surround",
)  # fmt: skip

PLAIN_DETAILS = (
    "crisp edges", "flat design", "clean and simple", "minimalist", "sharp focus", "high quality",
    "plain colours", "soft even light", "bold and clear", "smooth outlines", "an even surface",
    "a clear outline", "balanced composition", "no clutter", "a plain matte texture", "well defined edges",
)  # fmt: skip
"""Of pictures of one shape: mostly the additions of the captions."""

MOVING_DETAILS = SUFFIXES
"""Of clips: the additions of tiny-wan's own captions, which it was trained to ignore. Other words reach it
letter by letter, as its tokenizer spells them, and change what it draws."""

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
"""Words that an enriched prompt need not keep."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def content_words(text: str) -> list[str]:
    """The words of a text that are no function words: nouns, colours, verbs, directions, qualities."""
    return [word for word in words_of(text) if word not in FUNCTION_WORDS]


def colours_of(text: str) -> list[str]:
    """The scene colours that a text names, in its order."""
    return [word for word in words_of(text) if word in COLOURS]
