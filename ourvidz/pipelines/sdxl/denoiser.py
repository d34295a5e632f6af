"""Denoising steps of the SDXL UNet with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import diffusers
import torch

from ourvidz.pipelines.sdxl.prompt_encoding import PromptEmbeds


class Denoiser:
    """Runs denoising steps for a batch of images with one prompt.

    The UNet runs on the prompt and, if there are negative embeddings, on those too; `guidance_scale` combines
    the two. `generators`, one per image, are the noise source of schedulers that add noise between steps.
    `size` is width and height (px). `image_embeds` are for a UNet with an IP-Adapter. `attention` is a
    context manager that is entered around every call of the UNet and of nothing else.
    """

    def __init__(
        self,
        pipe: diffusers.StableDiffusionXLPipeline,
        scheduler: Any,
        embeds: PromptEmbeds,
        *,
        guidance_scale: float,
        generators: list[torch.Generator],
        size: tuple[int, int],
        image_embeds: list[torch.Tensor] | None = None,
        attention: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._unet = pipe.unet
        self._scheduler = scheduler
        self._attention = attention
        self._guidance_scale = guidance_scale
        self._guided = embeds.negative_prompt_embeds is not None
        images = len(generators)
        self._step_kwargs = _supported_kwargs(scheduler, {"eta": 0.0, "generator": generators})
        self._timestep_cond = _guidance_scale_embedding(pipe, guidance_scale, images)
        tensors = embeds.repeat(images)
        self._prompt_embeds = self._negative_first(tensors, "prompt_embeds")
        self._added_cond: dict[str, Any] = {
            "text_embeds": self._negative_first(tensors, "pooled_prompt_embeds"),
            "time_ids": _time_ids(pipe, size, self._prompt_embeds),
        }
        if image_embeds is not None:
            self._added_cond["image_embeds"] = image_embeds

    def step(self, latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step on latents (images, 4, rows, columns).

        Returns the latents after the step and the scheduler's estimate of the finished latents, both of that
        shape. For a scheduler without an estimate the second is the first.
        """
        noise_pred = self._predict_noise(latents, timestep)
        output = self._scheduler.step(noise_pred, timestep, latents, **self._step_kwargs)
        latents = output.prev_sample.to(latents.dtype)
        for name in ("pred_original_sample", "denoised"):
            estimate = getattr(output, name, None)
            if estimate is not None:
                return latents, estimate
        return latents, latents

    def _predict_noise(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The UNet's noise prediction after guidance, of the shape of `latents`."""
        model_input = torch.cat([latents, latents]) if self._guided else latents
        model_input = self._scheduler.scale_model_input(model_input, timestep)
        with self._attention():
            noise_pred: torch.Tensor = self._unet(
                model_input,
                timestep,
                encoder_hidden_states=self._prompt_embeds,
                timestep_cond=self._timestep_cond,
                added_cond_kwargs=self._added_cond,
                return_dict=False,
            )[0]
        if not self._guided:
            return noise_pred
        negative, positive = noise_pred.chunk(2)
        return negative + self._guidance_scale * (positive - negative)

    def _negative_first(self, tensors: dict[str, torch.Tensor | None], name: str) -> torch.Tensor:
        """The rows of `negative_<name>`, if there are any, followed by those of `name`."""
        pair = [tensors[f"negative_{name}"], tensors[name]]
        return torch.cat([rows for rows in pair if rows is not None])


def _supported_kwargs(scheduler: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of `kwargs` that the scheduler's `step` accepts."""
    parameters = signature(scheduler.step).parameters
    return {name: value for name, value in kwargs.items() if name in parameters}


def _guidance_scale_embedding(
    pipe: diffusers.StableDiffusionXLPipeline, guidance_scale: float, images: int
) -> torch.Tensor | None:
    """The guidance scale as a UNet input, (images, width); None for a UNet that has no such input."""
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return None
    scales = torch.tensor(guidance_scale - 1).repeat(images)
    embedding: torch.Tensor = pipe.get_guidance_scale_embedding(scales, embedding_dim=width)
    return embedding.to(pipe.unet.device, pipe.unet.dtype)


def _time_ids(
    pipe: diffusers.StableDiffusionXLPipeline, size: tuple[int, int], embeds: torch.Tensor
) -> torch.Tensor:
    """SDXL's micro-conditioning, (rows of `embeds`, 6): original size, crop corner and target size."""
    height_width = size[::-1]
    time_ids: torch.Tensor = pipe._get_add_time_ids(
        height_width,
        (0, 0),
        height_width,
        dtype=embeds.dtype,
        text_encoder_projection_dim=pipe.text_encoder_2.config.projection_dim,
    )
    return time_ids.to(embeds.device).repeat(len(embeds), 1)
