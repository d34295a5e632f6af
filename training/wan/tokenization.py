"""The T5 tokenizer: words of the captions are one token each, others are spelled in characters."""

from __future__ import annotations

import math
import re
import string
from collections import Counter

import torch
import transformers

from training.sdxl.tokenization import sample_captions

TOKENS = 64
"""Length that prompts are padded and truncated to."""

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>")
SPACE = "▁"
RARE = -20.0
"""The score of single characters, which spell words that no caption has."""


def train_tokenizer(seed: int, *, captions: int = 6000) -> transformers.T5Tokenizer:
    """The tokenizer of the pipeline, trained on captions, without T5's sentinel tokens."""
    return transformers.T5Tokenizer(
        vocab=_vocabulary(sample_captions(seed, captions)), extra_ids=0, model_max_length=TOKENS
    )


def _vocabulary(texts: list[str]) -> list[tuple[str, float]]:
    """Tokens and their scores: special tokens at the ids of T5, words with the logarithm of their frequency,
    then characters."""
    words = Counter(word for text in texts for word in re.findall(r"\w+", text))
    total = sum(words.values())
    pieces = {SPACE + word: math.log(count / total) for word, count in sorted(words.items())}
    characters = dict.fromkeys((SPACE, *string.printable.strip()), RARE)
    return [*((name, 0.0) for name in SPECIAL), *pieces.items(), *characters.items()]


def token_ids(tokenizer: transformers.T5Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded token ids and attention mask: (texts, 64) each."""
    encoding = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return encoding.input_ids, encoding.attention_mask
