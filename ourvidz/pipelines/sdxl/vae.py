"""The VAE of SDXL: images to latents and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
from PIL.Image import Image, fromarray

from ourvidz.pipelines.tensor_cache import TensorCache, cache_key, image_digest

SCALE = 8
"""Pixels per latent, in each direction."""


class ImageVAE:
    """The VAE of a loaded SDXL pipeline. Latents are (images, 4, height / 8, width / 8), scaled as the UNet
    expects them. `cache` keeps encoded images under the name of the loaded `weights`."""

    def __init__(
        self,
        pipe: diffusers.StableDiffusionXLPipeline,
        cache: TensorCache | None = None,
        *,
        weights: str = "",
    ) -> None:
        self._cache = cache or TensorCache()
        self._weights = weights
        self._vae = pipe.vae
        self._processor = pipe.image_processor
        self._device: torch.device = pipe._execution_device

    @torch.no_grad()
    def encode(self, image: Image) -> torch.Tensor:
        """The latents of one RGB image whose edges are multiples of 8 px. The mode of the distribution, so
        that equal images have equal latents."""
        self._upcast()
        key = cache_key(
            "sdxl vae", self._weights, image_digest(image), self._tiles, self._vae.dtype, self._device.type
        )
        cached = self._cache.get(key, self._device)
        if cached is not None and cached[0] is not None:
            return cached[0]
        pixels = self._processor.preprocess(image).to(self._device, self._vae.dtype)
        raw = self._vae.encode(pixels).latent_dist.mode()
        mean, std = self._statistics(raw)
        latents: torch.Tensor = (raw - mean) / std
        self._cache.put(key, (latents,))
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image]:
        """The RGB images of these latents."""
        self._upcast()
        latents = latents.to(self._vae.dtype)
        mean, std = self._statistics(latents)
        pixels = self._vae.decode(latents * std + mean, return_dict=False)[0]
        # Converted to bytes on the device: a quarter of the data to copy, and no arithmetic on the CPU.
        levels = (pixels.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return [fromarray(image) for image in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]

    @contextmanager
    def tiling(self, enabled: bool) -> Iterator[None]:
        """Encode and decode in overlapping, blended tiles inside this context, which needs less memory.

        Tiles are half the native size: the default tiles of diffusers are as large as a native image.
        """
        if not enabled:
            yield
            return
        vae = self._vae
        sizes = vae.tile_sample_min_size, vae.tile_latent_min_size
        vae.tile_sample_min_size, vae.tile_latent_min_size = (size // 2 for size in sizes)
        vae.enable_tiling()
        vae.enable_slicing()
        try:
            yield
        finally:
            vae.disable_tiling()
            vae.disable_slicing()
            vae.tile_sample_min_size, vae.tile_latent_min_size = sizes

    @property
    def _tiles(self) -> tuple[object, ...]:
        """How the VAE divides an image, which changes the latents."""
        vae = self._vae
        return vae.use_tiling, vae.use_slicing, vae.tile_sample_min_size, vae.tile_latent_min_size

    def _upcast(self) -> None:
        # SDXL's VAE overflows in half precision, which makes black images.
        if self._vae.dtype == torch.float16 and self._vae.config.force_upcast:
            self._vae.to(torch.float32)

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's raw latents, per channel if the checkpoint has them."""
        config = self._vae.config
        std = 1 / config.scaling_factor
        if config.latents_mean is None or config.latents_std is None:
            return like.new_zeros(1), like.new_full((1,), std)
        shape = (1, -1, 1, 1)
        return (
            like.new_tensor(config.latents_mean).view(shape),
            like.new_tensor(config.latents_std).view(shape) * std,
        )
