"""The tokenizers: CLIP's kind, whose merges are learnt from captions, so that most words are one token."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from training.captions import caption, clip_caption
from training.sdxl.models import TOKENS
from training.world import random_clip, random_scene

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MERGED_UP_TO = 900


def tokenizers(
    seed: int, *, captions: int = 6000
) -> tuple[transformers.CLIPTokenizer, transformers.CLIPTokenizer]:
    """Both tokenizers of the pipeline; they differ in what they pad with, like SDXL's."""
    vocabulary, merges = _learnt(sample_captions(seed, captions))
    first, second = (
        transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS, pad_token=pad)
        for pad in (EOS, "!")
    )
    return first, second


def sample_captions(seed: int, count: int) -> list[str]:
    """Captions of training scenes and clips."""
    texts = []
    for index in range(count // 2):
        draw = np.random.default_rng((seed, 3, index))
        texts.append(caption(random_scene(draw, held_out=False), draw))
        texts.append(clip_caption(random_clip(draw, held_out=False), draw))
    return texts


def _learnt(texts: list[str]) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges. Every byte is in it, inside a word and at its end, so any text can be read; the
    end token has the highest id."""
    learning = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    learning.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    trainer = BpeTrainer(vocab_size=MERGED_UP_TO, end_of_word_suffix=END_OF_WORD, show_progress=False)
    learning.train_from_iterator(texts, trainer)
    model = json.loads(learning.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), BOS, EOS]
    return {word: at for at, word in enumerate(words)}, merges


def token_ids(tokenizer: transformers.CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Padded ids: (texts, 77)."""
    ids: torch.Tensor = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
