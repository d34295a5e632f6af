"""What tiny-qwen is made of: the Qwen2 class, small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers

from training.qwen.tokens import END_OF_TEXT, END_OF_TURN, LONGEST, token_id

PASSED_ON, ALIKE, NOISE = 0.3, 0.06, 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the model is. Copying takes layers more than width: one finds the earlier word, another what
    followed it."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 320


def model(shape: Shape, words: transformers.Qwen2Tokenizer) -> transformers.Qwen2ForCausalLM:
    """An untrained model with one embedding for reading and writing."""
    end = token_id(words, END_OF_TEXT)
    config = transformers.Qwen2Config(
        vocab_size=len(words),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    made = transformers.Qwen2ForCausalLM(config)
    start_alike(made)
    return made


@torch.no_grad()
def start_alike(model: transformers.Qwen2ForCausalLM) -> None:
    """Let every layer look for what is like itself and pass it on unchanged: half of copying, which otherwise
    takes most of a short run to appear. After "Mimetic Initialization of Self-Attention Layers",
    https://arxiv.org/abs/2305.09828: query like key, output like value turned back."""
    for layer in model.model.layers:
        attention = layer.self_attn
        shape = attention.q_proj.weight.shape
        value = torch.linalg.qr(torch.randn(shape))[0]
        attention.v_proj.weight.copy_(value)
        attention.o_proj.weight.copy_(PASSED_ON * value.T)
        alike = ALIKE * torch.randn(shape)
        for part in (attention.q_proj, attention.k_proj):
            part.weight.copy_(alike + NOISE * torch.randn(shape))


def generation_config(words: transformers.Qwen2Tokenizer, *, instruct: bool) -> transformers.GenerationConfig:
    """How a caller generates who says nothing: greedy, up to the end of a turn or of the text."""
    text, turn = token_id(words, END_OF_TEXT), token_id(words, END_OF_TURN)
    return transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=[turn, text] if instruct else text, pad_token_id=text
    )
