"""How a Wan clip goes from noise to picture: the noise levels, and the two solvers that walk them.

On the way the latents are `(1 − σ) · clip + σ · noise`; σ is the noise level, 1 is pure noise, 0 the clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import numpy as np
import torch

Solver = Literal["unipc", "dpm++"]

LAST = 1 / 1000
"""The last position of a schedule before σ = 0, as a share of the first."""
LEAST_SHIFT = 1e-6
BELOW_ONE = 1 - 1e-6
"""The solvers take the logarithm of 1 − σ."""

_FLOW = {
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
    """A solver at its start, and the noise level before every step and after the last."""

    solver: Any
    levels: list[float]

    @property
    def steps(self) -> int:
        """How often the model is asked."""
        return len(self.levels) - 1


def noise_levels(steps: int, *, shift: float, start: float = 1.0) -> list[float]:
    """σ before every step and after the last: `steps` + 1 falling numbers from `start` to 0.

    Positions u are spread evenly and `σ = shift · u / (1 + (shift − 1) · u)`, so a larger shift spends more
    of the steps where there is much noise (https://arxiv.org/abs/2403.03206, section 5.3.2). A `start` below
    1 is met exactly: the shift is inverted first, then the positions below are walked in the same way.
    A shift of 0 is taken for the limit towards it.
    """
    shift = max(shift, LEAST_SHIFT)
    first = start / (shift - (shift - 1) * start)
    positions = first * np.linspace(1, LAST, steps + 1)[:-1]
    levels = shift * positions / (1 + (shift - 1) * positions)
    return [*np.minimum(levels, BELOW_ONE).tolist(), 0.0]


def solver(name: Solver, known: dict[str, Any], levels: list[float], device: torch.device) -> Any:
    """A fresh solver at the first of these noise levels. `known` is the checkpoint's scheduler config."""
    if name == "unipc":
        made = diffusers.UniPCMultistepScheduler.from_config(known, **_FLOW, solver_type="bh2")
    else:
        made = diffusers.DPMSolverMultistepScheduler.from_config(
            known, **_FLOW, solver_type="midpoint", algorithm_type="dpmsolver++"
        )
    made.set_timesteps(len(levels) - 1, device=device)
    # Only one of the two takes noise levels, and that one shifts them once more.
    made.sigmas = torch.tensor(levels, dtype=torch.float32)
    positions = np.array(levels[:-1]) * made.config.num_train_timesteps
    made.timesteps = torch.from_numpy(positions.astype(np.int64)).to(device)
    made.set_begin_index(0)
    return made
