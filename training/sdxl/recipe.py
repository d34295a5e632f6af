"""The hyperparameters of tiny-sdxl."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.sdxl.models import Shape

SIZES = {(128, 128): 0.9, (96, 96): 0.05, (64, 64): 0.05}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of all training stages.

    A stage ends after its steps or, where `*_minutes` is set, after that much training time. `latents` is the
    number of training images, `sizes` maps (width, height) in pixels to proportions of them. `evaluated` and
    `sheet_captions` are the numbers of held-out captions for the scores and for the contact sheet,
    `reconstructed` is the number of held-out images that measure the VAE, `normalization_images` of those
    that the latents are normalized on.
    """

    seed: int = 7
    shape: Shape = field(default_factory=Shape)
    vae_steps: int = 6000
    vae_minutes: float | None = None
    vae_batch: int = 16
    vae_lr: float = 1.5e-3
    latents: int = 12_000
    sizes: dict[tuple[int, int], float] = field(default_factory=lambda: dict(SIZES))
    unet_steps: int = 30_000
    unet_minutes: float | None = None
    unet_batch: int = 32
    unet_lr: float = 1e-3
    ema_decay: float = 0.999
    prompt_dropout: float = 0.11
    evaluated: int = 300
    sheet_captions: int = 32
    normalization_images: int = 256
    reconstructed: int = 128
