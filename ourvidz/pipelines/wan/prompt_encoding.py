"""Encodes prompts for Wan's transformers.

Not done by diffusers: its image-to-video pipelines cannot encode a prompt without the package ftfy, which its
text-to-video pipeline does without.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import torch

MAX_PROMPT_TOKENS = 512
"""The prompt length that Wan was trained with. A checkpoint whose tokenizer has a smaller maximum was trained
with that; more padding would change its result."""


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """An encoded prompt, (1, tokens, width), and the negative prompt of the same shape; None without
    classifier-free guidance."""

    prompt: torch.Tensor
    negative: torch.Tensor | None


def encode_prompt(pipe: Any, text: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The embeddings of one prompt, (1, tokens, width), zero after its end. `device` is where the text
    encoder is."""
    inputs = pipe.tokenizer(
        [clean_prompt(text)],
        padding="max_length",
        max_length=min(MAX_PROMPT_TOKENS, pipe.tokenizer.model_max_length),
        truncation=True,
        return_tensors="pt",
    ).to(device)
    hidden = pipe.text_encoder(inputs.input_ids, inputs.attention_mask).last_hidden_state
    embeds: torch.Tensor = hidden.to(dtype) * inputs.attention_mask[..., None].to(dtype)
    return embeds


def clean_prompt(text: str) -> str:
    """The text without HTML entities and with single spaces, as in Wan's training."""
    return " ".join(html.unescape(html.unescape(text)).split())
