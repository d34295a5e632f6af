"""The hyperparameters of tiny-qwen."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.qwen.models import Shape


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of both training stages.

    A stage ends after its steps or, where `*_minutes` is set, after that much training time. A batch is a
    number of texts. `evaluated` is the number of held-out examples that every score of texts is measured on,
    `clips` that of clips from plain and from enhanced prompts.
    """

    seed: int = 7
    shape: Shape = field(default_factory=Shape)
    tokenizer_texts: int = 8000
    base_steps: int = 4000
    base_minutes: float | None = None
    base_batch: int = 16
    base_lr: float = 2e-3
    instruct_steps: int = 8000
    instruct_minutes: float | None = None
    instruct_batch: int = 16
    instruct_lr: float = 1.5e-3
    ema_decay: float = 0.998
    evaluated: int = 200
    clips: int = 100
