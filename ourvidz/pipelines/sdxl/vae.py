"""Pictures to latents and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
from PIL.Image import Image, fromarray

SCALE = 8
"""A latent is this many pixels wide and high."""


class Codec:
    """The VAE of one loaded SDXL pipeline. Latents are (pictures, 4, height / 8, width / 8), as the UNet sees
    them."""

    def __init__(self, pipe: diffusers.StableDiffusionXLPipeline) -> None:
        self._vae = pipe.vae
        self._processor = pipe.image_processor
        self._device: torch.device = pipe._execution_device

    @torch.no_grad()
    def encode(self, image: Image) -> torch.Tensor:
        """The latents of one RGB picture whose edges are multiples of 8 px: the most likely ones, so that
        equal pictures have equal latents."""
        self._upcast()
        pixels = self._processor.preprocess(image).to(self._device, self._vae.dtype)
        found = self._vae.encode(pixels).latent_dist.mode()
        mean, spread = self._statistics(found)
        latents: torch.Tensor = (found - mean) / spread
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image]:
        """The RGB pictures of these latents."""
        self._upcast()
        scaled = latents.to(self._vae.dtype)
        mean, spread = self._statistics(scaled)
        pixels = self._vae.decode(scaled * spread + mean, return_dict=False)[0]
        # Rounded where they are, and copied then: a quarter of the bytes, and no arithmetic on the CPU.
        levels = (pixels.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return [fromarray(picture) for picture in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]

    @contextmanager
    def tiled(self, wanted: bool) -> Iterator[None]:
        """Work in overlapping tiles of half the native size for a while: less memory, seams that are
        blended. diffusers' own tiles are as large as a native picture, which stays whole then."""
        if not wanted:
            yield
            return
        vae = self._vae
        sides = vae.tile_sample_min_size, vae.tile_latent_min_size
        vae.tile_sample_min_size, vae.tile_latent_min_size = (side // 2 for side in sides)
        vae.enable_tiling()
        vae.enable_slicing()
        try:
            yield
        finally:
            vae.disable_tiling()
            vae.disable_slicing()
            vae.tile_sample_min_size, vae.tile_latent_min_size = sides

    def _upcast(self) -> None:
        # SDXL's VAE overflows in half precision: black pictures.
        if self._vae.dtype == torch.float16 and self._vae.config.force_upcast:
            self._vae.to(torch.float32)

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and spread of the VAE's own latents, one number a channel where the checkpoint says so."""
        config = self._vae.config
        scale = 1 / config.scaling_factor
        if config.latents_mean is None or config.latents_std is None:
            return like.new_zeros(1), like.new_full((1,), scale)
        shape = (1, -1, 1, 1)
        return (
            like.new_tensor(config.latents_mean).view(shape),
            like.new_tensor(config.latents_std).view(shape) * scale,
        )
