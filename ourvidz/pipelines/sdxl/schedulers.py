"""Diffusers schedulers for SDXL: selection, and their timesteps for text-to-image, image-to-image and
copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import torch

from ourvidz.jobs.ranges import EXACT_COPY_DENOISE

_MIN_NOISE_SHARE = 1e-30


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """A scheduler class of diffusers, and the fields it overrides in a checkpoint's scheduler config."""

    class_name: str
    overrides: dict[str, Any] = field(default_factory=dict)


_EULER = SchedulerSpec("EulerDiscreteScheduler")
_EULER_A = SchedulerSpec("EulerAncestralDiscreteScheduler")
_DPM = "DPMSolverMultistepScheduler"
_RESCALE = "rescale_betas_zero_snr"
_PLAIN_SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
}
"""Sigmas that follow the timesteps, for every class that has one of these fields."""
_TRAILING = {"timestep_spacing": "trailing"}

SCHEDULERS: dict[str, SchedulerSpec] = {
    "euler": _EULER,
    "euler_a": _EULER_A,
    "heun": SchedulerSpec("HeunDiscreteScheduler"),
    "dpmpp_2m": SchedulerSpec(_DPM),
    "dpmpp_2m_karras": SchedulerSpec(_DPM, {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": SchedulerSpec(_DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": SchedulerSpec(
        _DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    ),
    "ddim": SchedulerSpec("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "unipc": SchedulerSpec("UniPCMultistepScheduler"),
    "lcm": SchedulerSpec("LCMScheduler"),
}
"""By their usual names."""

FEW_STEPS: dict[str, SchedulerSpec] = {
    "lightning": SchedulerSpec(_EULER.class_name, _TRAILING),
    "turbo": SchedulerSpec(_EULER_A.class_name, _TRAILING),
    "lcm": SCHEDULERS["lcm"],
}
"""The scheduler of checkpoints that were distilled to one to eight steps, by distillation method."""


def build_scheduler(name: str | None, original: Any, *, few_steps: str | None = None) -> Any:
    """A scheduler with the noise schedule of `original`, the checkpoint's own one.

    `name` is a key of `SCHEDULERS`, `few_steps` one of `FEW_STEPS`. `name` takes precedence; without either
    the result is `original`, or an equal one that follows a field of its config which its class ignores.
    """
    if name is None and few_steps is None:
        ignores_config = original.config.get(_RESCALE) and not _rescales(type(original))
        return from_config(type(original).__name__, original.config, {}) if ignores_config else original
    spacing = _TRAILING if few_steps else {}
    spec = SCHEDULERS[name] if name else FEW_STEPS[few_steps or ""]
    return from_config(spec.class_name, original.config, {**spacing, **spec.overrides})


def from_config(class_name: str, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
    """A scheduler of this class of diffusers with these fields. Where the config asks for a terminal
    signal-to-noise ratio of zero and the class ignores that, it gets the betas of a class that does not."""
    kind, betas = getattr(diffusers, class_name), {}
    if {**config, **overrides}.get(_RESCALE) and not _rescales(kind):
        euler = diffusers.EulerDiscreteScheduler.from_config(config, **overrides)
        cumulated = euler.alphas_cumprod.double()
        alphas = torch.cat([cumulated[:1], cumulated[1:] / cumulated[:-1]])
        betas["trained_betas"] = (1 - alphas).tolist()
    # As arguments: diffusers takes a field of a config for unset if it once had its default there.
    return kind.from_config(config, **{**overrides, **betas})


def _rescales(kind: Any) -> bool:
    """Whether this class of diffusers reads the field for a terminal signal-to-noise ratio of zero."""
    return _RESCALE in signature(kind.__init__).parameters


def set_timesteps(scheduler: Any, steps: int, device: torch.device) -> torch.Tensor:
    """Prepare `scheduler` for `steps` steps from pure noise, and return the timesteps of the UNet calls.

    Second-order schedulers call the UNet twice per step.
    """
    if isinstance(scheduler, diffusers.LCMScheduler):
        # LCM selects its steps from the 50 it was trained on, and refuses more.
        trained = scheduler.config.original_inference_steps
        scheduler.set_timesteps(steps, device, original_inference_steps=max(trained, steps))
    else:
        scheduler.set_timesteps(steps, device=device)
    return _begin_at(scheduler, 0)


def set_img2img_timesteps(scheduler: Any, steps: int, strength: float, device: torch.device) -> torch.Tensor:
    """Prepare `scheduler`, made by `evenly_spaced`, for exactly `steps` steps that start at the noise level
    `strength` (0 to 1), and return the timesteps of the UNet calls.

    Truncating a schedule of the job's own number of steps, as diffusers does, would start a whole step lower,
    which with few steps is no noise at all.
    """
    trained = int(scheduler.config.num_train_timesteps)
    full_steps = round(min(steps / strength, trained)) if strength else trained
    if isinstance(scheduler, diffusers.LCMScheduler):
        last = [round(trained * (k + 1) / full_steps) - 1 for k in reversed(range(steps))]
        scheduler.set_timesteps(timesteps=last, device=device)
        return _begin_at(scheduler, 0)
    scheduler.set_timesteps(full_steps, device=device)
    # Adding up fractions of a step may produce one timestep too many, below 0.
    while scheduler.timesteps.min() < 0:
        full_steps += 1
        scheduler.set_timesteps(full_steps, device=device)
    return _begin_at(scheduler, (full_steps - steps) * scheduler.order)


def exact_copy_schedule(
    original: Any, steps: int, strength: float, device: torch.device
) -> tuple[Any, torch.Tensor]:
    """A scheduler for an exact copy, and its timesteps. It takes exactly `steps` steps down to no noise.

    It starts at the checkpoint's lowest noise level, scaled down by `strength` (above 0) relative to the
    largest strength of a copy. That much noise may remain in any finished image; an image-to-image pass of
    the same strength would start with eight times as much, which loses the position of edges within a latent.
    Always Euler, whatever scheduler is selected: it adds no noise between steps, which a copy could not
    remove, and it supports sigmas below the first timestep.
    """
    scheduler = diffusers.EulerDiscreteScheduler.from_config(original.config, **_PLAIN_SIGMAS)
    alpha_cumprod = float(scheduler.alphas_cumprod[0])
    # float32 has no numbers below 1e-38, and a step from sigma 0 to sigma 0 divides by it.
    share = min(max(strength / EXACT_COPY_DENOISE, _MIN_NOISE_SHARE), 1.0)
    sigmas = ((1 - alpha_cumprod) / alpha_cumprod) ** 0.5 * share * np.arange(steps, -1, -1) / steps
    scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
    return scheduler, _begin_at(scheduler, 0)


def evenly_spaced(scheduler: Any) -> Any:
    """A scheduler of the same class and noise schedule with evenly spaced steps, for image-to-image.

    The spacings of Karras and others put most steps at low noise, so that the last steps of such a schedule
    start far below the strength that they stand for.
    """
    return type(scheduler).from_config(scheduler.config, **_PLAIN_SIGMAS, **_TRAILING)


def _begin_at(scheduler: Any, index: int) -> torch.Tensor:
    """Start the scheduler at this index of its timesteps, and return those that are left."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    timesteps: torch.Tensor = scheduler.timesteps[index:]
    return timesteps
