"""How tiny-wan is trained: every number that changes the result."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.wan.models import Shape

LENGTHS = {17: 0.6, 9: 0.2, 33: 0.15, 1: 0.05}
"""Frames of the training clips, and the share of clips that has each."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Lengths are in steps and, where a machine's time is limited, minutes; `lengths` are the shares of clips
    of so many frames."""

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
    drawn: int = 12
