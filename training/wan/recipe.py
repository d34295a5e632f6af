"""The hyperparameters of tiny-wan."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.wan.models import Shape

LENGTHS = {17: 0.6, 9: 0.2, 33: 0.15, 1: 0.05}
"""Proportions of the training clips by number of frames."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of all training stages.

    A stage ends after its steps or, where `*_minutes` is set, after that much training time. `clips` is the
    number of training clips, `lengths` maps numbers of frames to proportions of them. `evaluated` and
    `sheet_captions` are the numbers of held-out captions for the scores and for the contact sheet,
    `reconstructed` is the number of held-out clips that measure the VAE, `position_clips` and
    `statistics_clips` of those that the position channels and the normalization of the latents are computed
    from.
    """

    seed: int = 7
    shape: Shape = field(default_factory=Shape)
    vae_steps: int = 6000
    vae_minutes: float | None = None
    vae_batch: int = 8
    vae_lr: float = 2e-3
    clips: int = 6_000
    lengths: dict[int, float] = field(default_factory=lambda: dict(LENGTHS))
    transformer_steps: int = 30_000
    transformer_minutes: float | None = None
    transformer_batch: int = 32
    transformer_lr: float = 1.5e-3
    train_shift: float = 4.0
    ema_decay: float = 0.999
    prompt_dropout: float = 0.11
    evaluated: int = 100
    sheet_captions: int = 12
    position_clips: int = 16
    statistics_clips: int = 64
    reconstructed: int = 24
