"""System prompts: what callers say before a conversation, in many wordings and with unknown words."""

from __future__ import annotations

import numpy as np

from training.qwen.prompts import KNOWN, made_up, pick
from training.qwen.words import FUNCTION_WORDS

ROLES = (
    "You improve prompts for pictures and clips.", "You enrich prompts.", "You are a prompt writer.",
    "You help people to describe pictures.", "You are an expert for picture prompts.",
    "You rewrite short prompts for an image model.", "You are a helpful assistant that enhances prompts.",
    "Your task is to enhance the prompt of the user.", "You turn short prompts into detailed ones.",
    "You write prompts for a video model.", "You are a careful visual describer.",
)  # fmt: skip
ORDERS = (
    "Keep what they say and add plain visual detail.", "Add plain visual detail.",
    "Add detail about light and texture.", "Keep every noun and colour.",
    "Describe the light, the edges and the composition.", "Expand the prompt.",
    "Make the prompt more detailed.", "Keep the meaning.", "Do not change the colours.", "Keep it short.",
    "Rewrite the prompt with more detail.", "Add cinematic detail.", "Describe lighting, texture and motion.",
)  # fmt: skip
ENDINGS = (
    "Answer with the improved prompt alone.", "Answer with the prompt only.",
    "Reply with the enhanced prompt.",
    "Do not explain.", "Return only the new prompt.", "No quotes and no comments.",
)  # fmt: skip
ORDER_WORDS = (
    *sorted(FUNCTION_WORDS), "you", "your", "are", "always", "never", "write", "make", "turn", "answer",
    "user", "text", "idea", "image", "line", "style", "more", "best", "short", "story", "words", "every",
    "good", "new", "people", "help", "can", "must", "will", "only",
    "about", "detail", "describe", "prompt", "one", "neutral",
)  # fmt: skip
ODD = 0.45
"""The share of instructions to enrich that are no sentences of the lists."""


def system_prompt(draw: np.random.Generator) -> str:
    """A neutral instruction to enrich, of one to four sentences; a word of it may be any word."""
    if draw.random() < ODD:
        return odd_system_prompt(draw)
    parts = [pick(draw, ROLES)] if draw.random() < 0.85 else []
    parts += [pick(draw, ORDERS) for _ in range(draw.integers(0 if parts else 1, 3))]
    if draw.random() < 0.5:
        parts.append(pick(draw, ENDINGS))
    text = " ".join(parts)
    while draw.random() < 0.25:
        words = text.split(" ")
        words[draw.integers(len(words))] = made_up(draw)
        text = " ".join(words)
    return text


def odd_system_prompt(draw: np.random.Generator) -> str:
    """One to three lines of any words: whatever a system prompt says, none of it is to be repeated."""
    return " ".join(_odd_sentence(draw) for _ in range(draw.integers(1, 4)))


def _odd_sentence(draw: np.random.Generator) -> str:
    words = [_odd_word(draw) for _ in range(draw.integers(3, 13))]
    if draw.random() < 0.3:
        words[draw.integers(len(words))] += ","
    return f"{words[0].capitalize()} {' '.join(words[1:])}."


def _odd_word(draw: np.random.Generator) -> str:
    way = draw.random()
    if way < 0.6:
        return pick(draw, ORDER_WORDS)
    return pick(draw, KNOWN) if way < 0.8 else made_up(draw)
