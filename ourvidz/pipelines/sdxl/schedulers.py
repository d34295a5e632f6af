"""Which way denoising goes from noise to a picture, and where on that way it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch

from ourvidz.jobs.ranges import EXACT_COPY_DENOISE

_LEAST_SHARE = 1e-30


@dataclass(frozen=True, slots=True)
class Row:
    """A scheduler class of diffusers, and what it changes in a checkpoint's own scheduler config."""

    kind: str
    changes: dict[str, Any] = field(default_factory=dict)


_EULER = Row("EulerDiscreteScheduler")
_EULER_A = Row("EulerAncestralDiscreteScheduler")
_DPM = "DPMSolverMultistepScheduler"
_UNSHAPED = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
}
"""Noise levels where the timesteps say, for whatever class has these fields."""
_TRAILING = {"timestep_spacing": "trailing"}

SCHEDULERS: dict[str, Row] = {
    "euler": _EULER,
    "euler_a": _EULER_A,
    "heun": Row("HeunDiscreteScheduler"),
    "dpmpp_2m": Row(_DPM),
    "dpmpp_2m_karras": Row(_DPM, {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": Row(_DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": Row(_DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "ddim": Row("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "unipc": Row("UniPCMultistepScheduler"),
    "lcm": Row("LCMScheduler"),
}
"""By the names people know them under."""

FEW_STEPS: dict[str, Row] = {
    "lightning": Row(_EULER.kind, _TRAILING),
    "turbo": Row(_EULER_A.kind, _TRAILING),
    "lcm": SCHEDULERS["lcm"],
}
"""What checkpoints need that were distilled to one to eight steps."""


def build(name: str | None, own: Any, *, few_steps: str | None = None) -> Any:
    """A scheduler with the noise levels of `own`, which came with the checkpoint.

    `name` is a row of `SCHEDULERS`; without one `few_steps`, a row of `FEW_STEPS`, decides, and without
    either it is `own`.
    """
    if name is None and few_steps is None:
        return own
    spaced = _TRAILING if few_steps else {}
    chosen = SCHEDULERS[name] if name else FEW_STEPS[few_steps or ""]
    return getattr(diffusers, chosen.kind).from_config(own.config, **{**spaced, **chosen.changes})


def from_noise(scheduler: Any, steps: int, device: torch.device) -> torch.Tensor:
    """Set `scheduler` to go all the way in `steps` steps; the timesteps at which the UNet is asked.

    Second-order schedulers ask it twice a step.
    """
    if isinstance(scheduler, diffusers.LCMScheduler):
        # It picks its steps out of the 50 it was trained on, and refuses more than those.
        trained = scheduler.config.original_inference_steps
        scheduler.set_timesteps(steps, device, original_inference_steps=max(trained, steps))
    else:
        scheduler.set_timesteps(steps, device=device)
    return _beginning_at(scheduler, 0)


def from_picture(scheduler: Any, steps: int, denoise: float, device: torch.device) -> torch.Tensor:
    """Set `scheduler`, made by `evenly`, to go the last `denoise` (0 to 1) of the way in exactly `steps`
    steps; the timesteps at which the UNet is asked.

    The noise level is the strength's own whatever the number of steps: cutting a schedule of the job's
    steps short would begin a whole step lower, which with few steps is no noise at all.
    """
    trained = int(scheduler.config.num_train_timesteps)
    whole = round(min(steps / denoise, trained)) if denoise else trained
    if isinstance(scheduler, diffusers.LCMScheduler):
        last = [round(trained * (k + 1) / whole) - 1 for k in reversed(range(steps))]
        scheduler.set_timesteps(timesteps=last, device=device)
        return _beginning_at(scheduler, 0)
    scheduler.set_timesteps(whole, device=device)
    # Adding up a fraction of a step can miss the end and go one step too far.
    while scheduler.timesteps.min() < 0:
        whole += 1
        scheduler.set_timesteps(whole, device=device)
    return _beginning_at(scheduler, (whole - steps) * scheduler.order)


def for_copy(own: Any, steps: int, denoise: float, device: torch.device) -> tuple[Any, torch.Tensor]:
    """A scheduler that goes down to no noise in exactly `steps` steps, and its timesteps. It begins at the
    checkpoint's lowest noise level, or as far below it as `denoise` (above 0) is below the most that a copy
    may have.

    So much noise may be left in a finished picture. A modification of that strength begins with eight times
    as much, which hides where between two latents an outline ran. Always Euler's steps, whatever else is
    chosen: they draw no noise on the way, which a copy could not get rid of, and can lie below the first
    timestep.
    """
    scheduler = diffusers.EulerDiscreteScheduler.from_config(own.config, **_UNSHAPED)
    signal = float(scheduler.alphas_cumprod[0])
    # Single precision has no smaller levels than 1e-38, and a step from none to none divides by it.
    share = min(max(denoise / EXACT_COPY_DENOISE, _LEAST_SHARE), 1.0)
    noise = ((1 - signal) / signal) ** 0.5 * share * np.arange(steps, -1, -1) / steps
    scheduler.set_timesteps(sigmas=noise.tolist(), device=device)
    return scheduler, _beginning_at(scheduler, 0)


def evenly(scheduler: Any) -> Any:
    """A scheduler of the same class and noise levels for the way from a picture, its steps spaced evenly.

    Karras' and the other shapes crowd the steps where there is hardly any noise, so the last steps of such
    a schedule begin far below the strength that they stand for.
    """
    return type(scheduler).from_config(scheduler.config, **_UNSHAPED, **_TRAILING)


def _beginning_at(scheduler: Any, index: int) -> torch.Tensor:
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    timesteps: torch.Tensor = scheduler.timesteps[index:]
    return timesteps
