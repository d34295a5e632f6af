"""The video VAE of Wan: frames to latents and back.

Latent frame 0 stands for frame 0 alone, latent frame k for frames 4k − 3 to 4k. So the model generates
1, 5, 9, … frames, and the surplus is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray

from ourvidz.pipelines.sizes import center_crop
from ourvidz.pipelines.tensor_cache import TensorCache, cache_key, tensor_digest

TEMPORAL_SCALE = 4
"""Frames per latent frame, after the first."""
MAX_TILE_PX = 256
MIN_TILE_PX = 32
_TILE_SIZES = tuple(
    f"tile_sample_{kind}_{side}" for kind in ("min", "stride") for side in ("height", "width")
)
"""Attributes of diffusers' VAE."""


def frames_to_generate(frames: int) -> int:
    """The smallest 4n + 1 that is at least `frames`."""
    return 1 + TEMPORAL_SCALE * later_latent_frames(frames)


def later_latent_frames(frames: int) -> int:
    """The number of latent frames after the first, in a clip of at least `frames` frames."""
    return -(-(frames - 1) // TEMPORAL_SCALE)


def image_tensor(image: Image, width: int, height: int) -> torch.Tensor:
    """The image, cropped around its centre and resized, as (3, height, width) from -1 to 1."""
    levels = np.asarray(center_crop(image, width, height))
    pixels = torch.from_numpy(levels.copy()).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


def grey_clip(images: dict[int, torch.Tensor], frames: int, width: int, height: int) -> torch.Tensor:
    """A grey clip, (3, frames, height, width), with `images`, each (3, height, width), at these frames."""
    clip = torch.zeros(3, frames, height, width)
    for frame, image in images.items():
        clip[:, frame] = image
    return clip


def to_images(frames: torch.Tensor) -> list[Image]:
    """RGB images of (frames, 3, height, width) from -1 to 1."""
    levels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [fromarray(frame) for frame in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


class VideoVAE:
    """The VAE of one pipeline, with latents normalized to mean 0 and standard deviation 1, in the VAE's dtype
    (float32).

    `cache` keeps encoded images and clips under the name of the loaded `weights`. `device` is where the VAE
    runs, if that is not where its weights are now.

    Not thread-safe: the diffusers VAE caches features on itself while it runs.
    """

    def __init__(
        self,
        vae: Any,
        cache: TensorCache | None = None,
        *,
        weights: str = "",
        device: torch.device | None = None,
    ) -> None:
        self._vae = vae
        self._device = device or vae.device
        self._cache = cache or TensorCache()
        self._weights = weights
        self._mean = self._per_channel(vae.config.latents_mean)
        self._std = self._per_channel(vae.config.latents_std)

    def shape(self, frames: int, width: int, height: int) -> tuple[int, ...]:
        """The shape of a clip's latents: (1, channels, latent frames, rows, columns)."""
        scale = self._vae.config.scale_factor_spatial
        return (
            1,
            self._vae.config.z_dim,
            1 + later_latent_frames(frames),
            height // scale,
            width // scale,
        )

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Width and height (px) of the clip that latents of this shape decode to."""
        scale = self._vae.config.scale_factor_spatial
        return shape[4] * scale, shape[3] * scale

    def num_frames(self, shape: tuple[int, ...]) -> int:
        """The number of frames of the clip that latents of this shape decode to."""
        return 1 + TEMPORAL_SCALE * (shape[2] - 1)

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Zero latents of this shape, on the VAE's device."""
        return torch.zeros(shape, device=self._device, dtype=self._vae.dtype)

    def encode(self, image: torch.Tensor, *, frames: int = 1) -> torch.Tensor:
        """The latents of a clip that shows `image`, (3, height, width) from -1 to 1, for `frames` = 4n + 1
        frames."""
        clip = image[:, None].expand(-1, frames, -1, -1)
        return self._encode(clip, content=("image", tensor_digest(image), frames))

    def encode_clip(self, clip: torch.Tensor) -> torch.Tensor:
        """The latents of a clip of 4n + 1 frames, (3, frames, height, width) from -1 to 1."""
        return self._encode(clip, content=("clip", tensor_digest(clip)))

    def _encode(self, clip: torch.Tensor, *, content: tuple[object, ...]) -> torch.Tensor:
        """The latents of a clip, from the cache if there are any for this content."""
        device, dtype = self._device, self._vae.dtype
        key = cache_key("wan vae", self._weights, content, self._tiles, dtype, device.type)
        cached = self._cache.get(key, device)
        if cached is not None and cached[0] is not None:
            return cached[0]
        pixels = clip.to(device, dtype)[None]
        try:
            raw = self._vae.encode(pixels).latent_dist.mode()
        finally:
            self._vae.clear_cache()  # a failed pass would keep its tensors
        latents: torch.Tensor = (raw - self._mean) / self._std
        self._cache.put(key, (latents,))
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The frames of a clip's latents: (frames, 3, height, width) from -1 to 1."""
        try:
            clip = self._vae.decode(latents * self._std + self._mean, return_dict=False)[0]
        finally:
            self._vae.clear_cache()
        frames: torch.Tensor = clip[0].permute(1, 0, 2, 3)
        return frames

    @property
    def _tiles(self) -> tuple[object, ...]:
        """How the VAE divides a clip, which changes the latents."""
        vae = self._vae
        return vae.use_tiling, *(getattr(vae, name) for name in _TILE_SIZES)

    def _per_channel(self, values: list[float]) -> torch.Tensor:
        """Values by channel as a tensor that broadcasts over latents."""
        return torch.tensor(values, device=self._device, dtype=self._vae.dtype).view(1, -1, 1, 1, 1)


@contextmanager
def tiling(vae: Any, enabled: bool, size: tuple[int, int]) -> Iterator[None]:
    """Let a diffusers VAE work in overlapping, blended tiles inside this context, which needs less memory.

    A tile is at most 256 px wide and high, and at most half the longest edge of `size` (width and height,
    px): the default tiles of diffusers are as large as a small clip. Tiles overlap by a quarter.
    """
    if not enabled:
        yield
        return
    previous = {name: getattr(vae, name) for name in _TILE_SIZES}
    tile = min(MAX_TILE_PX, max(MIN_TILE_PX, max(size) // 2 // MIN_TILE_PX * MIN_TILE_PX))
    stride = tile * 3 // 4
    vae.enable_tiling(tile, tile, stride, stride)
    try:
        yield
    finally:
        vae.disable_tiling()
        for name, value in previous.items():
            setattr(vae, name, value)
