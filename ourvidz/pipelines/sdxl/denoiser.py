"""The UNet of one part of one job: noisy latents in, latents with less noise out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import diffusers
import torch

from ourvidz.pipelines.sdxl.conditioning import Conditioning


class Denoiser:
    """Takes denoising steps for some pictures with the same words.

    `guidance` above 1 asks the UNet twice a step, with the words and with the negative ones, unless the
    checkpoint was distilled to be told the guidance. `generators`, one a picture, are what schedulers draw
    from that add noise between the steps. `size` is width and height in pixels. `image_embeds` is for UNets
    with an IP-Adapter. `attending` is entered around every call of the UNet, and of nothing else.
    """

    def __init__(
        self,
        pipe: diffusers.StableDiffusionXLPipeline,
        scheduler: Any,
        words: Conditioning,
        *,
        guidance: float,
        generators: list[torch.Generator],
        size: tuple[int, int],
        image_embeds: list[torch.Tensor] | None = None,
        attending: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._unet = pipe.unet
        self._scheduler = scheduler
        self._attending = attending
        self._guidance = guidance
        self._guided = words.negative_tokens is not None
        pictures = len(generators)
        self._extra = _understood(scheduler, {"eta": 0.0, "generator": generators})
        self._told = _told_guidance(pipe, guidance, pictures)
        named = words.repeated(pictures)
        self._tokens = self._both(named, "prompt_embeds")
        self._added: dict[str, Any] = {
            "text_embeds": self._both(named, "pooled_prompt_embeds"),
            "time_ids": _sizes(pipe, size, self._tokens),
        }
        if image_embeds is not None:
            self._added["image_embeds"] = image_embeds

    def step(self, latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents after one step, and the finished ones as the scheduler guesses them now.

        Schedulers that do not tell their guess give the latents themselves, noise and all.
        """
        said = self._scheduler.step(self._noise(latents, timestep), timestep, latents, **self._extra)
        after: torch.Tensor = said.prev_sample.to(latents.dtype)
        for name in ("pred_original_sample", "denoised"):
            guess = getattr(said, name, None)
            if guess is not None:
                return after, guess
        return after, after

    def _noise(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the UNet takes for noise, guided away from the negative words."""
        asked = torch.cat([latents, latents]) if self._guided else latents
        scaled = self._scheduler.scale_model_input(asked, timestep)
        with self._attending():
            said: torch.Tensor = self._unet(
                scaled,
                timestep,
                encoder_hidden_states=self._tokens,
                timestep_cond=self._told,
                added_cond_kwargs=self._added,
                return_dict=False,
            )[0]
        if not self._guided:
            return said
        away, toward = said.chunk(2)
        return away + self._guidance * (toward - away)

    def _both(self, named: dict[str, torch.Tensor | None], name: str) -> torch.Tensor:
        """The negative rows above the others, where there are any."""
        pair = [named[f"negative_{name}"], named[name]]
        return torch.cat([rows for rows in pair if rows is not None])


def _understood(scheduler: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """What of `wanted` this scheduler takes with a step. It need not be the pipeline's own."""
    taken = signature(scheduler.step).parameters
    return {name: value for name, value in wanted.items() if name in taken}


def _told_guidance(
    pipe: diffusers.StableDiffusionXLPipeline, guidance: float, pictures: int
) -> torch.Tensor | None:
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return None
    strength = torch.tensor(guidance - 1).repeat(pictures)
    embedding: torch.Tensor = pipe.get_guidance_scale_embedding(strength, embedding_dim=width)
    return embedding.to(pipe.unet.device, pipe.unet.dtype)


def _sizes(
    pipe: diffusers.StableDiffusionXLPipeline, size: tuple[int, int], tokens: torch.Tensor
) -> torch.Tensor:
    """SDXL is told which size a picture had, where it was cropped, and which size it shall have."""
    height_first = size[::-1]
    ids: torch.Tensor = pipe._get_add_time_ids(
        height_first,
        (0, 0),
        height_first,
        dtype=tokens.dtype,
        text_encoder_projection_dim=pipe.text_encoder_2.config.projection_dim,
    )
    return ids.to(tokens.device).repeat(len(tokens), 1)
