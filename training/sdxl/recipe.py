"""How tiny-sdxl is trained: every number that changes the result."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.sdxl.models import Shape

SIZES = {(128, 128): 0.9, (96, 96): 0.05, (64, 64): 0.05}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Lengths are in steps and, where a machine's time is limited, minutes; `sizes` are the shares of
    pictures of (width, height) pixels."""

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
    drawn: int = 32
