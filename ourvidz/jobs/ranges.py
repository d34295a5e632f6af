"""The ranges and lengths of payload values. Parsers and JSON schemas use the same ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `low` to `high`, both included.

    `whole` allows whole numbers only, `multiple` only multiples of it, `above` excludes `low` itself.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    multiple: int = 1

    def __contains__(self, value: float) -> bool:
        inside = (self.low < value if self.above else self.low <= value) and value <= self.high
        return inside and (not self.whole or value % self.multiple == 0)

    @property
    def rule(self) -> str:
        """The range in words, for error messages: "a whole number from 1 to 100"."""
        kind = (
            f"a multiple of {self.multiple}"
            if self.multiple > 1
            else "a whole number"
            if self.whole
            else "a number"
        )
        if self.above:
            return f"{kind} above {self.low:g} and at most {self.high:.12g}"
        return f"{kind} from {self.low:g} to {self.high:.12g}"


STEPS = Range(1, 100, whole=True)
GUIDANCE = Range(0, 20)
SEED = Range(0, 2147483647, whole=True)
FRAMES = Range(1, 161, whole=True)
FPS = Range(8, 24, whole=True)
SHIFT = Range(0, 30)
STRENGTH = Range(0, 1)
LORA_WEIGHT = Range(-2, 2)
SDXL_SIDE_PX = Range(64, 2048, whole=True, multiple=8)
WAN_SIDE_PX = Range(64, 2048, whole=True, multiple=16)
EXPECTED_S = Range(0, 86400, above=True)

MAX_TOKENS = Range(1, 2048, whole=True)
TEMPERATURE = Range(0, 2)
TOP_P = Range(0, 1, above=True)
PENALTY = Range(-2, 2)

MAX_STOPS = 4
STOP_CHARS = 100
PROMPT_CHARS = 10_000
URL_CHARS = 4_096
DATA_URI_CHARS = 8 << 20
MAX_MESSAGES = 200
CONVERSATION_CHARS = 100_000
"""One system prompt, or all messages of a conversation together."""

WAN_ASPECTS: tuple[tuple[int, int], ...] = ((480, 832), (832, 480), (624, 624))
EXACT_COPY_DENOISE = 0.05
