"""Prompt embeddings of Wan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.prompt_encoding import encode_prompt


def test_a_prompt_is_encoded_as_by_diffusers(wan_checkpoint: Checkpoint) -> None:
    """Bit for bit, with zeros after its end. It needs tokenizer and text encoder only, so it works for
    pipelines whose own encoding requires ftfy."""
    pipe: Any = diffusers.WanPipeline.from_pretrained(wan_checkpoint.path, local_files_only=True)
    cpu = torch.device("cpu")
    prompt = "a red  star &amp; a pond"
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=512, device=cpu
        )
        components = SimpleNamespace(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)
        embeds = encode_prompt(components, prompt, cpu, torch.float32)
    assert torch.equal(embeds, expected)
    assert embeds[0, -1].abs().sum() == 0
