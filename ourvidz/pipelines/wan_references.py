"""How pictures steer Wan's text-to-video model, which has no input for them.

Two ways, both of which need no further weights:

- Latent replacement. The latent frames that are known follow their own straight path from the noise to the
  picture, whatever the model says about them; the model fills in the others.
- SDEdit (https://arxiv.org/abs/2108.01073). Denoising starts at a noise level below 1, from the picture with
  that much noise: the lower the level, the more of the picture is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from PIL.Image import Image

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.videos import NEEDS
from ourvidz.pipelines.base import ReferencePictures
from ourvidz.pipelines.wan_frames import Codec, fitted

Backend = Literal["latent_replacement", "sdedit"]

LEAST_NOISE = 1e-3
"""Where a picture starts that is to change by nothing: at 0 there would be no step to take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the references steer one job.

    Denoising starts at noise level `start` (0 to 1) and takes `steps` steps. The latent frames `held` (0 the
    first, -1 the last) are known during the first `held_steps` of them. `backend` is None without references.
    """

    backend: Backend | None
    start: float
    steps: int
    held: tuple[int, ...] = ()
    held_steps: int = 0


def plan(job: VideoJob) -> Plan:
    """What the contract says for the job's mode and `denoise_strength`."""
    strength = job.denoise_strength
    if job.reference_mode == "none":
        return Plan(None, 1.0, job.steps)
    if job.frames == 1:
        # Holding its only frame would return the reference itself.
        return Plan("sdedit", max(LEAST_NOISE, strength), share_of(job.steps, strength))
    if job.reference_mode == "single":
        start = 0.7 + 0.3 * strength
        steps = share_of(job.steps, start)
        return Plan("sdedit", start, steps, (0,), held_steps(steps, strength))
    held = {"start": (0,), "end": (-1,), "both": (0, -1)}[job.reference_mode]
    return Plan("latent_replacement", 1.0, job.steps, held, held_steps(job.steps, strength))


def share_of(steps: int, strength: float) -> int:
    """How many of the steps run when denoising starts at `strength`: at least one."""
    return max(1, int(round(steps * strength, 6)))


def held_steps(steps: int, strength: float) -> int:
    """How long frames are held: always up to a strength of 0.5, above it not in the last 2 · strength − 1."""
    return steps - round(steps * max(0.0, 2 * strength - 1))


def need_all(job: VideoJob, references: ReferencePictures) -> None:
    """`InvalidParameters` when a reference that the job's mode needs is not there."""
    for name in NEEDS[job.reference_mode]:
        _given(references, name)


def known_latents(
    job: VideoJob, plan: Plan, references: ReferencePictures, codec: Codec, shape: tuple[int, ...]
) -> torch.Tensor:
    """The latents of `shape` as the references say; zeros where they say nothing, which nobody reads."""
    frames, (width, height) = codec.frames(shape), codec.size(shape)
    if plan.backend == "sdedit":
        # One frame between a start and an end begins at the start.
        picture = fitted(_given(references, NEEDS[job.reference_mode][0]), width, height)
        return codec.encode(picture, frames=frames)
    known = codec.zeros(shape)
    if 0 in plan.held:
        picture = fitted(_given(references, "start"), width, height)
        known[:, :, 0] = codec.encode(picture)[:, :, 0]
    if -1 in plan.held:
        # The last latent frame has a past: a still clip's comes nearest to a clip that ends on the picture.
        picture = fitted(_given(references, "end"), width, height)
        known[:, :, -1] = codec.encode(picture, frames=frames)[:, :, -1]
    return known


def _given(references: ReferencePictures, name: str) -> Image:
    image: Image | None = getattr(references, name)
    if image is None:
        raise InvalidParameters(
            f"The {name} reference is missing.", field="reference_mode", rule=f"a {name} reference"
        )
    return image


class Steering:
    """Keeps the known latents known while a solver walks its noise levels.

    `known` and `noise` have the shape of the latents, (1, channels, latent frames, rows, columns).
    """

    def __init__(self, plan: Plan, known: torch.Tensor, noise: torch.Tensor) -> None:
        self._plan = plan
        self._known = known
        self._noise = noise

    def begin(self, level: float) -> torch.Tensor:
        """The latents that denoising starts from, at noise level `level`."""
        return self._at(level) if self._plan.backend == "sdedit" else self._noise

    def velocity(self, velocity: torch.Tensor, *, step: int) -> torch.Tensor:
        """The model's velocity in step `step`, on held frames the one that leads to what is known.

        Solvers with a memory go by velocities alone: were only the latents replaced, a frame that is let go
        would fall back to where the model's own guesses had led.
        """
        for at in self._held(step):
            velocity[:, :, at] = self._noise[:, :, at] - self._known[:, :, at]
        return velocity

    def after(self, latents: torch.Tensor, *, step: int, level: float) -> torch.Tensor:
        """The latents after step `step`, now at noise level `level`, exact where they are held."""
        for at in self._held(step):
            latents[:, :, at] = self._at(level)[:, :, at]
        return latents

    def _held(self, step: int) -> tuple[int, ...]:
        return self._plan.held if step < self._plan.held_steps else ()

    def _at(self, level: float) -> torch.Tensor:
        return (1 - level) * self._known + level * self._noise
