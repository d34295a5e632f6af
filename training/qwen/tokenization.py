"""The byte-level BPE tokenizer and the token sequences of training examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from training.qwen.corpus import Text, conversation, plain_text
from training.qwen.dialogues import Message
from training.qwen.prompts import VOCABULARY

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY_SIZE = 2600
"""Tokens without the three special ones."""
WORD_REPEATS = 30
"""How often every word of the vocabulary is added to the tokenizer's texts, so that most are one token."""
STAGE = 1
CONTEXT = 2048
"""Longest sequence in tokens. Training examples have at most a few hundred."""
IGNORED = -100
"""The label of tokens that the loss leaves out."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as in Qwen2.5, without its default system prompt."""

Example = tuple[list[int], list[int]]
"""Token ids and labels of equal length."""


def train_tokenizer(seed: int, *, texts: int = 8000) -> transformers.Qwen2Tokenizer:
    """A Qwen2 tokenizer whose merges are trained on `texts` texts of the corpus. Every byte is a token, so
    that any text can be encoded."""
    qwen: Any = transformers.Qwen2Tokenizer()._tokenizer
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=8
    )
    tokenizer.train_from_iterator(sample_texts(seed, texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    trained = transformers.Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        additional_special_tokens=[START_OF_TURN, END_OF_TURN],
        model_max_length=CONTEXT,
    )
    trained.chat_template = CHAT_TEMPLATE
    return trained


def sample_texts(seed: int, count: int) -> list[str]:
    """Texts of both corpora and the vocabulary itself, for training the tokenizer."""
    texts = []
    for index in range(count // 2):
        rng = np.random.default_rng((seed, STAGE, index))
        texts.append(plain_text(rng).full)
        texts.extend(message["content"] for message in conversation(rng))
    return [*texts, *[f" {' '.join(VOCABULARY)}"] * WORD_REPEATS]


def token_id(tokenizer: transformers.Qwen2Tokenizer, token: str) -> int:
    """The id of one token of the vocabulary."""
    index = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int)
    return index


def text_example(tokenizer: transformers.Qwen2Tokenizer, text: Text) -> Example:
    """A plain text with its end token. The labels cover the completion and the end."""
    context = tokenizer.encode(text.context)
    completion = [*tokenizer.encode(text.completion), token_id(tokenizer, END_OF_TEXT)]
    return [*context, *completion], [*[IGNORED] * len(context), *completion]


def chat_example(tokenizer: transformers.Qwen2Tokenizer, messages: Sequence[Message]) -> Example:
    """A conversation as the chat template formats it. The labels cover the assistant's messages and their
    end tokens."""
    ids: list[int] = []
    labels: list[int] = []
    start, end = token_id(tokenizer, START_OF_TURN), token_id(tokenizer, END_OF_TURN)
    newline = tokenizer.encode("\n")
    for message in messages:
        header = [start, *tokenizer.encode(message["role"] + "\n")]
        content = [*tokenizer.encode(message["content"]), end]
        ids += [*header, *content, *newline]
        target = content if message["role"] == "assistant" else [IGNORED] * len(content)
        labels += [*[IGNORED] * len(header), *target, *[IGNORED] * len(newline)]
    return ids, labels


def pad_batch(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, padded on the right to the longest example: (examples, tokens) each."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in examples])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in examples])
    return ids, labels
