"""Encodes prompts for Wan's transformers.

Not done by diffusers: its image-to-video pipelines cannot encode a prompt without the package ftfy, which its
text-to-video pipeline does without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ourvidz.pipelines.tensor_cache import TensorCache, cache_key
from ourvidz.prompts.cleaning import clean_prompt
from ourvidz.prompts.encoder_texts import hand_over

MAX_PROMPT_TOKENS = 512
"""The prompt length that Wan was trained with. A checkpoint whose tokenizer has a smaller maximum was trained
with that; more padding would change its result."""


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """An encoded prompt, (1, tokens, width), and the negative prompt of the same shape; None without
    classifier-free guidance."""

    prompt: torch.Tensor
    negative: torch.Tensor | None


def encode_prompts(
    pipe: Any,
    texts: Sequence[str],
    *,
    in_use: Callable[[], AbstractContextManager[torch.device]],
    device: torch.device,
    dtype: torch.dtype,
    cache: TensorCache,
    weights: str,
) -> list[torch.Tensor]:
    """The embeddings of each text, (1, tokens, width), on `device`.

    `cache` keeps them under the name of the loaded `weights`. `in_use` brings the text encoder to the device
    where it runs, and is entered only if a text is not in the cache.
    """
    hand_over(map(clean_prompt, texts))
    keys = [cache_key("wan", weights, text, dtype, device.type) for text in texts]
    cached = [cache.get(key, device) for key in keys]
    missing = {key: text for key, text, entry in zip(keys, texts, cached, strict=True) if entry is None}
    computed = {}
    if missing:
        with in_use() as encoder_device:
            for key, text in missing.items():
                computed[key] = encode_prompt(pipe, text, encoder_device, dtype).to(device)
                cache.put(key, (computed[key],))
    return [
        computed[key] if entry is None or entry[0] is None else entry[0]
        for key, entry in zip(keys, cached, strict=True)
    ]


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
