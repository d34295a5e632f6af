"""Velocity prediction of Wan's transformer with classifier-free guidance."""

from __future__ import annotations

from typing import Any

import torch

from ourvidz.pipelines.wan.prompt_encoding import PromptEmbeds


def predict_velocity(
    transformer: Any,
    model_inputs: dict[str, torch.Tensor],
    timestep: torch.Tensor,
    embeds: PromptEmbeds,
    guidance_scale: float,
    *,
    joint_batch: bool,
) -> torch.Tensor:
    """The velocity, noise minus clip, that the transformer predicts, after guidance: float32, (1, channels,
    latent frames, rows, columns).

    `model_inputs` are the transformer's arguments beside timestep and prompt. `joint_batch` runs both prompts
    in one batch, the negative one first; otherwise they run one after the other.
    """
    if embeds.negative is None:
        return _run(transformer, model_inputs, timestep, embeds.prompt, "cond")
    if joint_batch:
        both = torch.cat([embeds.negative, embeds.prompt])
        negative, positive = _run(transformer, _repeat(model_inputs), timestep, both, "both").chunk(2)
    else:
        positive = _run(transformer, model_inputs, timestep, embeds.prompt, "cond")
        negative = _run(transformer, model_inputs, timestep, embeds.negative, "uncond")
    return negative + guidance_scale * (positive - negative)


def _repeat(model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs for a batch of two. One-dimensional inputs have no batch dimension."""
    return {
        name: tensor if tensor.dim() == 1 else torch.cat([tensor, tensor])
        for name, tensor in model_inputs.items()
    }


def _run(
    transformer: Any,
    model_inputs: dict[str, torch.Tensor],
    timestep: torch.Tensor,
    prompt_embeds: torch.Tensor,
    cache_context: str,
) -> torch.Tensor:
    """One pass of the transformer in its own dtype. `cache_context` separates the step cache's state of the
    two prompts."""
    with transformer.cache_context(cache_context):
        output: torch.Tensor = transformer(
            **model_inputs,
            timestep=timestep.expand(len(prompt_embeds)),
            encoder_hidden_states=prompt_embeds,
            return_dict=False,
        )[0]
    return output.float()
