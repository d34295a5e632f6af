"""Prompts as Wan's transformers read them.

An own step, because the pipelines for pictures in diffusers cannot encode a prompt without a package that
repairs broken characters, which the one for text does without.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import torch

PROMPT_TOKENS = 512
"""What Wan was trained with. A checkpoint whose tokenizer takes fewer was trained with fewer, and would hear
the padding of the rest."""


@dataclass(frozen=True, slots=True)
class Words:
    """A prompt as the transformer reads it, (1, tokens, width).

    The negative one is None where nothing guides away from it.
    """

    prompt: torch.Tensor
    negative: torch.Tensor | None


def encode(pipe: Any, text: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """One prompt, (1, tokens, width): zeros after its end. `device` is where the text encoder is."""
    given = pipe.tokenizer(
        [cleaned(text)],
        padding="max_length",
        max_length=min(PROMPT_TOKENS, pipe.tokenizer.model_max_length),
        truncation=True,
        return_tensors="pt",
    ).to(device)
    said = pipe.text_encoder(given.input_ids, given.attention_mask).last_hidden_state
    words: torch.Tensor = said.to(dtype) * given.attention_mask[..., None].to(dtype)
    return words


def cleaned(text: str) -> str:
    """What the model was trained on: no entities of HTML, and one space between words."""
    return " ".join(html.unescape(html.unescape(text)).split())
