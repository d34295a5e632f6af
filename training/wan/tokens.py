"""The tokenizer: T5's kind, the words of the captions are one token each, others are spelt."""

from __future__ import annotations

import math
import re
import string
from collections import Counter

import torch
import transformers

from training.sdxl.tokens import sample_captions

TOKENS = 64
"""Longest prompt. Every prompt is padded to it, and each token costs time in every layer."""

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>")
SPACE = "▁"
RARE = -20.0
"""The score of a character that no caption has: any text can be read, letter by letter."""


def tokenizer(seed: int, *, captions: int = 6000) -> transformers.T5Tokenizer:
    """The tokenizer of the pipeline, without sentinels: nothing is ever masked in a prompt."""
    return transformers.T5Tokenizer(
        vocab=_learnt(sample_captions(seed, captions)), extra_ids=0, model_max_length=TOKENS
    )


def _learnt(texts: list[str]) -> list[tuple[str, float]]:
    """Pieces and their scores: the special ones first, at the ids that T5 gives them; then the words, the
    more frequent the likelier; then what other texts are spelt with."""
    words = Counter(word for text in texts for word in re.findall(r"\w+", text))
    total = sum(words.values())
    pieces = {SPACE + word: math.log(count / total) for word, count in sorted(words.items())}
    letters = dict.fromkeys((SPACE, *string.printable.strip()), RARE)
    return [*((name, 0.0) for name in SPECIAL), *pieces.items(), *letters.items()]


def token_ids(tokenizer: transformers.T5Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids and the mask of what is text: both (texts, 64)."""
    read = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return read.input_ids, read.attention_mask
