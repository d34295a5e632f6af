"""The model: Qwen2's class, small, with initial weights that already copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from training.qwen.tokenization import CONTEXT, END_OF_TEXT, END_OF_TURN, token_id

EMBEDDING_STD = 0.08
RECORDED = 0.1
"""Scale of what a head of the first layer adds about an earlier token: about as much as the embedding has."""
PASSED_ON = 0.4
"""Scale of what the second layer adds of the token it attends to: more than the current token has."""
PASSED_ON_LATER = 0.05
SIMILAR, NOISE = 0.06, 0.02
"""Deviations of the shared and the separate part of queries and keys in the later layers."""
MATCHED = 2.5
"""Scale of the query and key projections of the second layer."""
OFFSET_BIAS = 8.0
"""Size of the query and key biases that make a head of the first layer attend to a fixed offset."""
FAST_PAIRS = 5
"""Rotary pairs that turn fast enough to tell neighbouring positions apart; the others compare tokens."""
ROPE_THETA = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of the transformer. Copying takes two layers at least: one records which token came before,
    the next finds the position where the current token occurred and attends to the one after it."""

    width: int = 160
    layers: int = 4
    heads: int = 5
    inner: int = 400


def build_model(shape: Shape, tokenizer: transformers.Qwen2Tokenizer) -> transformers.Qwen2ForCausalLM:
    """An untrained model whose input and output embeddings are shared."""
    end = token_id(tokenizer, END_OF_TEXT)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = transformers.Qwen2ForCausalLM(config)
    initialize_induction(model)
    return model


@torch.no_grad()
def initialize_induction(model: transformers.Qwen2ForCausalLM) -> None:
    """Initialize the first two layers as induction heads, which otherwise take most of a short run to appear.

    In layer 0 half of the heads attend to the previous token and one to the token before that; each writes a
    projection of its token into a subspace of its own, its record. In layer 1 every head compares the current
    token and the one before with the records of all positions and passes on the token it attends to: the one
    that followed the last occurrence of both. See "In-context Learning and Induction Heads",
    https://arxiv.org/abs/2209.11895. Later layers attend to similar positions.
    """
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    size = width // heads
    recording, matching = (layer.self_attn for layer in model.model.layers[:2])
    model.model.embed_tokens.weight.normal_(0, EMBEDDING_STD)
    projections = torch.split(_orthogonal(width), size)
    records = torch.split(_orthogonal(width), size)
    previous = max(heads // 2, 1)
    offsets = [*((1, projection) for projection in projections[:previous]), (2, projections[0])]
    for head, (offset, projection) in enumerate(offsets):
        rows = slice(head * size, (head + 1) * size)
        _attend_to_offset(recording, rows, offset)
        recording.v_proj.weight[rows] = projection
        recording.o_proj.weight[:, rows] = RECORDED * records[head].T
    slow = (torch.arange(size) % (size // 2) >= min(FAST_PAIRS, size // 4)).float()[:, None]
    for head in range(heads):
        mixing = _orthogonal(size)
        current = head % previous
        rows = slice(head * size, (head + 1) * size)
        query = projections[current] + mixing @ records[0]
        key = records[current] + mixing @ records[previous]
        matching.q_proj.weight[rows] = MATCHED * slow * query
        matching.k_proj.weight[rows] = MATCHED * slow * key
    _add_attended_residual(matching, PASSED_ON)
    for layer in model.model.layers[2:]:
        _attend_to_similar(layer.self_attn)
        _add_attended_residual(layer.self_attn, PASSED_ON_LATER)


def _attend_to_offset(attention: Any, rows: slice, offset: int) -> None:
    """Set the biases of one head so that it attends to the token `offset` positions back, whatever it is: the
    rotation of the key's bias by `offset` positions is undone by the distance."""
    half = (rows.stop - rows.start) // 2
    pairs = min(FAST_PAIRS, half)
    angles = offset * ROPE_THETA ** (-torch.arange(pairs) / half)
    real = slice(rows.start, rows.start + pairs)
    imaginary = slice(rows.start + half, rows.start + half + pairs)
    attention.q_proj.bias[real] = OFFSET_BIAS
    attention.k_proj.bias[real] = OFFSET_BIAS * angles.cos()
    attention.k_proj.bias[imaginary] = OFFSET_BIAS * angles.sin()


def _attend_to_similar(attention: Any) -> None:
    """Set queries and keys to nearly the same random projection, so that positions attend to similar ones.

    See "Mimetic Initialization of Self-Attention Layers", https://arxiv.org/abs/2305.09828.
    """
    shared = SIMILAR * torch.randn(attention.q_proj.weight.shape)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.copy_(shared + NOISE * torch.randn(shared.shape))


def _add_attended_residual(attention: Any, scale: float) -> None:
    """Set value and output projections so that attention adds the attended hidden states times `scale`."""
    value = _orthogonal(attention.v_proj.weight.shape[0])
    attention.v_proj.weight.copy_(value)
    attention.o_proj.weight.copy_(scale * value.T)


def _orthogonal(width: int) -> torch.Tensor:
    """A random orthogonal matrix: (width, width)."""
    orthogonal: torch.Tensor = torch.linalg.qr(torch.randn(width, width))[0]
    return orthogonal


def generation_config(
    tokenizer: transformers.Qwen2Tokenizer, *, instruct: bool
) -> transformers.GenerationConfig:
    """The defaults of generation: greedy, up to the end of a turn (instruct) or of the text (base)."""
    text, turn = token_id(tokenizer, END_OF_TEXT), token_id(tokenizer, END_OF_TURN)
    return transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=[turn, text] if instruct else text, pad_token_id=text
    )
