"""Instructions to enrich prompts, as callers put them into system prompts: sentences and random words."""

from __future__ import annotations

import numpy as np

from training.qwen.sampling import BLENDED, made_up_word, pick
from training.qwen.vocabulary import FUNCTION_WORDS

ROLES = (
    "You improve prompts for pictures and clips.", "You enrich prompts.", "You are a prompt writer.",
    "You help people to describe pictures.", "You are an expert for picture prompts.",
    "You rewrite short prompts for an image model.", "You are a helpful assistant that enhances prompts.",
    "Your task is to enhance the prompt of the user.", "You turn short prompts into detailed ones.",
    "You write prompts for a video model.", "You are a careful visual describer.",
)  # fmt: skip
TASKS = (
    "Keep what they say and add plain visual detail.", "Add plain visual detail.",
    "Keep what they say and describe light, texture and motion.",
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
INSTRUCTION_WORDS = (
    *sorted(FUNCTION_WORDS), "you", "your", "are", "always", "never", "write", "make", "turn", "answer",
    "user", "text", "idea", "image", "line", "style", "more", "best", "short", "story", "words", "every",
    "good", "new", "people", "help", "can", "must", "will", "only",
    "about", "detail", "describe", "prompt", "one", "neutral",
)  # fmt: skip
RANDOM_RATE = 0.45
"""Proportion of instructions that consist of random words instead of sentences of the lists."""


def enrichment_instruction(rng: np.random.Generator) -> str:
    """An instruction of one to four sentences or of random words. In sentences, made-up words replace some
    words."""
    if rng.random() < RANDOM_RATE:
        return random_instruction(rng)
    parts = [pick(rng, ROLES)] if rng.random() < 0.85 else []
    parts += [pick(rng, TASKS) for _ in range(rng.integers(0 if parts else 1, 3))]
    if rng.random() < 0.5:
        parts.append(pick(rng, ENDINGS))
    text = " ".join(parts)
    while rng.random() < 0.25:
        words = text.split(" ")
        words[rng.integers(len(words))] = made_up_word(rng)
        text = " ".join(words)
    return text


def random_instruction(rng: np.random.Generator) -> str:
    """One to three sentences of random words, so that the model learns to ignore what an instruction says."""
    return " ".join(_random_sentence(rng) for _ in range(rng.integers(1, 4)))


def _random_sentence(rng: np.random.Generator) -> str:
    """A sentence of 3 to 12 random words."""
    words = [_random_word(rng) for _ in range(rng.integers(3, 13))]
    if rng.random() < 0.3:
        words[rng.integers(len(words))] += ","
    return f"{words[0].capitalize()} {' '.join(words[1:])}."


def _random_word(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.6:
        return pick(rng, INSTRUCTION_WORDS)
    return pick(rng, BLENDED) if kind < 0.8 else made_up_word(rng)
