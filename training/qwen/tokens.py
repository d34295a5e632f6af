"""The tokenizer: Qwen2's kind, byte-level pairs that are learnt from the corpus, and what a conversation is
in tokens."""

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
from training.qwen.talk import Message

END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MERGED_UP_TO = 1400
STAGE = 1
LONGEST = 2048
"""Tokens; what is trained on is shorter, and what is said after more than a few hundred is worth little."""
IGNORED = -100
"""A label that the loss leaves out."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, as Qwen2.5 has it, without its default system prompt."""

Example = tuple[list[int], list[int]]
"""Token ids and labels, of one length."""


def tokenizer(seed: int, *, texts: int = 8000) -> transformers.Qwen2Tokenizer:
    """Learnt from `texts` texts of the corpus. Every byte is a token, so any text can be read."""
    like: Any = transformers.Qwen2Tokenizer()._tokenizer
    learning = Tokenizer(BPE())
    learning.normalizer, learning.pre_tokenizer = like.normalizer, like.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=MERGED_UP_TO, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=8
    )
    learning.train_from_iterator(sample_texts(seed, texts), trainer)
    model = json.loads(learning.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    made = transformers.Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        additional_special_tokens=[TURN, END_OF_TURN],
        model_max_length=LONGEST,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def sample_texts(seed: int, count: int) -> list[str]:
    """Texts of both kinds."""
    texts = []
    for index in range(count // 2):
        draw = np.random.default_rng((seed, STAGE, index))
        texts.append(plain_text(draw).whole)
        texts.extend(message["content"] for message in conversation(draw))
    return texts


def token_id(words: transformers.Qwen2Tokenizer, token: str) -> int:
    """The id of one token."""
    found = words.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def text_example(words: transformers.Qwen2Tokenizer, text: Text) -> Example:
    """A text to its end."""
    given = words.encode(text.given)
    learnt = [*words.encode(text.learnt), token_id(words, END_OF_TEXT)]
    return [*given, *learnt], [*[IGNORED] * len(given), *learnt]


def chat_example(words: transformers.Qwen2Tokenizer, messages: Sequence[Message]) -> Example:
    """A conversation as the chat template writes it: what the assistant says is learnt."""
    ids: list[int] = []
    labels: list[int] = []
    begin, end = token_id(words, TURN), token_id(words, END_OF_TURN)
    newline = words.encode("\n")
    for message in messages:
        head = [begin, *words.encode(message["role"] + "\n")]
        said = [*words.encode(message["content"]), end]
        ids += [*head, *said, *newline]
        learnt = said if message["role"] == "assistant" else [IGNORED] * len(said)
        labels += [*[IGNORED] * len(head), *learnt, *[IGNORED] * len(newline)]
    return ids, labels


def padded(examples: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, padded at the end to the longest: (examples, tokens) each."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in examples])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in examples])
    return ids, labels
