"""Asking one of Wan's transformers for the way from noise to clip."""

from __future__ import annotations

from typing import Any

import torch

from ourvidz.pipelines.wan.wording import Words


def velocity(
    transformer: Any,
    given: dict[str, torch.Tensor],
    timestep: torch.Tensor,
    words: Words,
    guidance: float,
    *,
    joined: bool,
) -> torch.Tensor:
    """What the model takes for noise minus clip, guided away from the negative prompt.

    `given` is what it is called with beside timestep and prompt. `joined`: both prompts in one batch, the
    negative one first.
    """
    if words.negative is None:
        return _ask(transformer, given, timestep, words.prompt, "cond")
    if joined:
        both = torch.cat([words.negative, words.prompt])
        away, toward = _ask(transformer, _twice(given), timestep, both, "both").chunk(2)
    else:
        toward = _ask(transformer, given, timestep, words.prompt, "cond")
        away = _ask(transformer, given, timestep, words.negative, "uncond")
    return away + guidance * (toward - away)


def _twice(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For a batch of two. What has one dimension is not of the batch."""
    return {name: one if one.dim() == 1 else torch.cat([one, one]) for name, one in given.items()}


def _ask(
    transformer: Any,
    given: dict[str, torch.Tensor],
    timestep: torch.Tensor,
    words: torch.Tensor,
    cache: str,
) -> torch.Tensor:
    """One pass of the transformer, in its own precision. `cache` keeps the two prompts' caches apart."""
    with transformer.cache_context(cache):
        said = transformer(
            **given, timestep=timestep.expand(len(words)), encoder_hidden_states=words, return_dict=False
        )[0]
    found: torch.Tensor = said.float()
    return found
