"""The CLIP tokenizers, with merges trained on captions, so that most words are one token."""

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
from training.scenes import random_clip, random_scene
from training.sdxl.models import TOKENS

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
VOCABULARY_SIZE = 900


def train_tokenizers(
    seed: int, *, captions: int = 6000
) -> tuple[transformers.CLIPTokenizer, transformers.CLIPTokenizer]:
    """Both tokenizers of the pipeline; as in SDXL they differ in the padding token."""
    vocabulary, merges = _train(sample_captions(seed, captions))
    first, second = (
        transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS, pad_token=pad)
        for pad in (EOS, "!")
    )
    return first, second


def sample_captions(seed: int, count: int) -> list[str]:
    """Captions of training scenes and clips."""
    texts = []
    for index in range(count // 2):
        rng = np.random.default_rng((seed, 3, index))
        texts.append(caption(random_scene(rng, held_out=False), rng))
        texts.append(clip_caption(random_clip(rng, held_out=False), rng))
    return texts


def _train(texts: list[str]) -> tuple[dict[str, int], list[Any]]:
    """The vocabulary and the merges. The vocabulary has every byte, inside and at the end of words, so that
    any text can be encoded; the end token has the highest id."""
    tokenizer = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    trainer = BpeTrainer(vocab_size=VOCABULARY_SIZE, end_of_word_suffix=END_OF_WORD, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), BOS, EOS]
    return {word: index for index, word in enumerate(words)}, merges


def token_ids(tokenizer: transformers.CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, padded: (texts, 77)."""
    ids: torch.Tensor = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
