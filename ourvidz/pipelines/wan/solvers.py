"""Flow-matching schedules of Wan: the noise levels (sigmas) and the two solvers.

Latents at noise level σ are `(1 − σ) · clip + σ · noise`; σ = 1 is pure noise, σ = 0 the clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import numpy as np
import torch

SolverName = Literal["unipc", "dpm++"]

LAST_POSITION = 1 / 1000
"""The last position of a schedule before σ = 0, relative to the first."""
MIN_SHIFT = 1e-6
MAX_SIGMA = 1 - 1e-6
"""Below 1, because the solvers take the logarithm of 1 − σ."""

_FLOW_CONFIG = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "thresholding": False,
    "solver_order": 2,
    "final_sigmas_type": "zero",
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """A diffusers scheduler at its start, and its sigmas: one before every step and one after the last."""

    scheduler: Any
    sigmas: list[float]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.sigmas) - 1


def flow_sigmas(steps: int, *, shift: float, start: float = 1.0) -> list[float]:
    """`steps` + 1 falling noise levels from `start` to 0.

    Positions u are spaced evenly and `σ = shift · u / (1 + (shift − 1) · u)`: a larger shift puts more steps
    at high noise levels (https://arxiv.org/abs/2403.03206, section 5.3.2). A `start` below 1 is met exactly,
    by inverting the formula for the first position. A shift of 0 is replaced by a very small one.
    """
    shift = max(shift, MIN_SHIFT)
    first = start / (shift - (shift - 1) * start)
    positions = first * np.linspace(1, LAST_POSITION, steps + 1)[:-1]
    sigmas = shift * positions / (1 + (shift - 1) * positions)
    return [*np.minimum(sigmas, MAX_SIGMA).tolist(), 0.0]


def build_solver(name: SolverName, config: dict[str, Any], sigmas: list[float], device: torch.device) -> Any:
    """A new diffusers scheduler at the first of these sigmas. `config` is the checkpoint's scheduler
    config."""
    if name == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler.from_config(config, **_FLOW_CONFIG, solver_type="bh2")
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            config, **_FLOW_CONFIG, solver_type="midpoint", algorithm_type="dpmsolver++"
        )
    scheduler.set_timesteps(len(sigmas) - 1, device=device)
    # Set directly: only one of the two classes takes sigmas, and it would shift them again.
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float32)
    timesteps = np.array(sigmas[:-1]) * scheduler.config.num_train_timesteps
    scheduler.timesteps = torch.from_numpy(timesteps.astype(np.int64)).to(device)
    scheduler.set_begin_index(0)
    return scheduler
