"""How tiny-qwen is trained: every number that changes the result."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.qwen.models import Shape


@dataclass(frozen=True, slots=True)
class Recipe:
    """Lengths are in steps and, where a machine's time is limited, minutes; a batch is a number of texts."""

    seed: int = 7
    shape: Shape = field(default_factory=Shape)
    tokenizer_texts: int = 8000
    base_steps: int = 12_000
    base_minutes: float | None = None
    base_batch: int = 16
    base_lr: float = 2e-3
    instruct_steps: int = 12_000
    instruct_minutes: float | None = None
    instruct_batch: int = 16
    instruct_lr: float = 1.5e-3
    ema_decay: float = 0.998
    evaluated: int = 200
