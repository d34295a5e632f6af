"""Cleans prompts as the release of Wan does before it tokenizes them.

The release calls `ftfy.fix_text`, whose replacements of characters are repeated here; the package is no
dependency. Its repair of texts that were decoded with a wrong encoding is left out: the safety gate checks
the text without it.
"""

from __future__ import annotations

import html
import unicodedata

_FULL_WIDTH = range(0xFF01, 0xFFF0)
"""The block of full-width and half-width forms."""
_LIGATURES = "ĲĳﬀﬁﬂﬃﬄﬆǄǅǆǇǈǉǊǋǌǱǲǳ"
_REMOVED = (
    *range(0x09),
    *range(0x0E, 0x1C),
    0x7F,
    *range(0x206A, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFD),
)
"""Control characters without a meaning in a text. Those that Python counts as white space become spaces, as
in the safety gate; ftfy removes them."""


def _replacements() -> dict[int, str]:
    """What `clean_prompt` replaces, by code point."""
    table = {code: unicodedata.normalize("NFKC", chr(code)) for code in (0x3000, *_FULL_WIDTH)}
    table |= {ord(one): unicodedata.normalize("NFKC", one) for one in _LIGATURES}
    table |= {0x0149: "'n", 0xFB05: "\u017ft"}
    table |= dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'")
    table |= dict.fromkeys(range(0x201C, 0x2020), '"')
    return table | dict.fromkeys(_REMOVED, "")


_TABLE = _replacements()


def clean_prompt(text: str) -> str:
    """The text with straight quotes, ASCII punctuation and letters for full-width ones, composed accents, no
    ligatures, HTML entities or control characters, and single spaces."""
    # Entities are decoded twice and before all else, as in the safety gate: no later step may make new ones.
    decoded = html.unescape(html.unescape(text))
    return " ".join(unicodedata.normalize("NFC", decoded.translate(_TABLE)).split())
