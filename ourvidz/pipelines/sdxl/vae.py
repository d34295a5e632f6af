"""The VAE of SDXL: images to latents and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import diffusers
import torch
from PIL.Image import Image, fromarray

from ourvidz import log
from ourvidz.pipelines import devices
from ourvidz.pipelines.finite import check_finite, is_finite
from ourvidz.pipelines.tensor_cache import TensorCache, cache_key, image_digest

_log = log.get(__name__)

SCALE = 8
"""Pixels per latent, in each direction."""


class ImageVAE:
    """The VAE of a loaded SDXL pipeline. Latents are (images, 4, height / 8, width / 8), scaled as the UNet
    expects them. `cache` keeps encoded images under the name of the loaded `weights`. A VAE that overflows in
    float16 runs in `wide_dtype`."""

    def __init__(
        self,
        pipe: diffusers.StableDiffusionXLPipeline,
        cache: TensorCache | None = None,
        *,
        weights: str = "",
        wide_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._wide_dtype = wide_dtype
        self._cache = cache or TensorCache()
        self._weights = weights
        self._vae = pipe.vae
        self._processor = pipe.image_processor
        self._device: torch.device = pipe._execution_device

    @torch.no_grad()
    def encode(self, image: Image) -> torch.Tensor:
        """The latents of one RGB image whose edges are multiples of 8 px. The mode of the distribution, so
        that equal images have equal latents. Raises `InternalError` if they are not finite."""
        self._upcast()
        key = cache_key(
            "sdxl vae", self._weights, image_digest(image), self._tiles, self._vae.dtype, self._device.type
        )
        cached = self._cache.get(key, self._device)
        if cached is not None and cached[0] is not None:
            return cached[0]
        pixels = self._processor.preprocess(image).to(self._device)
        raw = self._without_overflow(lambda: self._vae.encode(pixels.to(self._vae.dtype)).latent_dist.mode())
        mean, std = self._statistics(raw)
        latents: torch.Tensor = (raw - mean) / std
        self._cache.put(key, (latents,))
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image]:
        """The RGB images of these latents. Raises `InternalError` if they are not finite."""
        self._upcast()
        pixels = self._without_overflow(lambda: self._decode(latents.to(self._vae.dtype)))
        # Converted to bytes on the device: a quarter of the data to copy, and no arithmetic on the CPU.
        levels = (pixels.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return [fromarray(image) for image in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]

    def decode_bytes(self, size: tuple[int, int]) -> int:
        """About the memory that decoding one image of this size (px) takes: the last level holds three
        tensors with the channels of the level below it, 3 GiB for 1024x1024 px of SDXL in float32."""
        width, height = size
        channels = int(self._vae.config.block_out_channels[1])
        dtype = self._wide_dtype if self._upcasts else self._vae.dtype
        return 3 * channels * width * height * int(dtype.itemsize)

    def must_tile(self, size: tuple[int, int]) -> bool:
        """Whether too little memory is free to decode an image of this size (px) whole. Taking the rest would
        make the other workers of the device run out of memory too."""
        free = devices.free_bytes(self._device)
        return free is not None and self.decode_bytes(size) > free

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

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels from -1 to 1, (images, 3, height, width), of latents in the VAE's dtype."""
        mean, std = self._statistics(latents)
        pixels: torch.Tensor = self._vae.decode(latents * std + mean, return_dict=False)[0]
        return pixels

    def _without_overflow(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result of `run`; if it is not finite in half precision, the VAE is converted to float32, stays
        so, and `run` is called again. Raises `InternalError` if the result is not finite then."""
        result = run()
        if self._vae.dtype != torch.float32 and not is_finite(result):
            _log.warning("vae_overflow", dtype=str(self._vae.dtype).removeprefix("torch."))
            self._vae.to(torch.float32)
            result = run()
        check_finite(result, "VAE")
        return result

    def _upcast(self) -> None:
        if self._upcasts:
            self._vae.to(self._wide_dtype)

    @property
    def _upcasts(self) -> bool:
        """SDXL's VAE overflows in half precision, which makes black images."""
        return self._vae.dtype == torch.float16 and bool(self._vae.config.force_upcast)

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
