"""How pictures steer Wan's text-to-video model, which has no input for them.

Two ways, both of which need no further weights:

- Latent replacement. The latent frames that are known follow their own straight path from the noise to the
  picture, whatever the model says about them; the model fills in the others.
- SDEdit (https://arxiv.org/abs/2108.01073). Denoising starts at a noise level below 1, from the picture with
  that much noise: the lower the level, the more of the picture is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image as Picture
from PIL.Image import Image

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import ReferenceMode, VideoJob
from ourvidz.jobs.videos import NEEDS
from ourvidz.pipelines.base import ReferenceImages, SourceVideo
from ourvidz.pipelines.wan.checkpoint import WanModel
from ourvidz.pipelines.wan.conditions import UNCONDITIONED, Condition
from ourvidz.pipelines.wan.frames import Codec, fitted, frames_to_generate, latent_frames_after_first

Backend = Literal["latent_replacement", "sdedit"]
ReferenceBackend = Literal["latent_replacement", "sdedit", "vace", "image_to_video"]

ONLY_MODE: dict[WanModel, ReferenceMode] = {"i2v": "start", "flf2v": "both"}
"""The models that need their pictures, and in which mode they come."""
CUT_TOO_MUCH = 2
"""So many of the four frames of the last latent frame: those that are left are not yet its picture."""
LEAST_NOISE = 1e-3
"""Where a picture starts that is to change by nothing: at 0 there would be no step to take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the references steer one job.

    Denoising starts at noise level `start` (0 to 1) and takes `steps` steps. The latent frames `held` (0 the
    first, -1 the last) are known during the first `held_steps` of them. `backend` is what is done to the
    latents: None where nothing is. `model` is asked; VACE hears the references as strongly as `control` says
    (0 to 1) during the first `control_steps`. `told` is how a model hears them that has an input for them.
    """

    backend: Backend | None
    start: float
    steps: int
    held: tuple[int, ...] = ()
    held_steps: int = 0
    model: WanModel = "t2v"
    control: float = 0.0
    control_steps: int = 0
    told: Literal["vace", "image_to_video"] | None = None

    @property
    def reference_backend(self) -> ReferenceBackend | None:
        """The name of the method, for the callback."""
        return self.told or self.backend

    def control_in(self, step: int) -> float:
        """How strongly VACE hears the references in this step."""
        return self.control if step < self.control_steps else 0.0


def plan(job: VideoJob, model: WanModel = "t2v", *, sourced: bool = False) -> Plan:
    """What the contract says for the job's mode and `denoise_strength`, on this model. `sourced`: VACE has
    a clip to go by."""
    if model in ONLY_MODE:
        _need_mode(job, ONLY_MODE[model])
        return Plan(None, 1.0, job.steps, model=model, told="image_to_video")
    by_latents = _by_latents(job)
    if model == "t2v":
        return by_latents
    if job.reference_mode == "none":
        # Without references it is told that all is to be made: so it was trained on text alone.
        told: Literal["vace"] | None = "vace" if sourced else None
        return replace(by_latents, model="vace", control=1.0, control_steps=job.steps, told=told)
    if job.frames == 1:
        # Heard in full it would return the picture, as holding its only frame would.
        heard, steps = 1 - job.denoise_strength, by_latents.steps
    else:
        heard, steps = 1.0, by_latents.held_steps
    return replace(by_latents, model="vace", control=heard, control_steps=steps, told="vace")


def _by_latents(job: VideoJob) -> Plan:
    """What is done to the latents: it holds for every model that no picture has been put into otherwise."""
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
    held = {"start": (0,), "end": (-1,), "both": (0, *_end_of_a_transition(job.frames))}[job.reference_mode]
    return Plan("latent_replacement", 1.0, job.steps, held, held_steps(job.steps, strength))


def _end_of_a_transition(frames: int) -> tuple[int, ...]:
    """The latent frames at the end of a clip that can lose no frame at its beginning. Of the frames of the
    last one, only the later ones are the picture: where they are cut off, the one before is it too."""
    cut = frames_to_generate(frames) - frames
    return (-2, -1) if cut >= CUT_TOO_MUCH and latent_frames_after_first(frames) > 1 else (-1,)


def share_of(steps: int, strength: float) -> int:
    """How many of the steps run when denoising starts at `strength`: at least one."""
    return max(1, int(round(steps * strength, 6)))


def held_steps(steps: int, strength: float) -> int:
    """How long frames are held: always up to a strength of 0.5, above it not in the last 2 · strength − 1."""
    return steps - round(steps * max(0.0, 2 * strength - 1))


def _need_mode(job: VideoJob, mode: ReferenceMode) -> None:
    if job.reference_mode != mode:
        raise InvalidParameters(
            f"This checkpoint makes clips of the mode {mode} alone.",
            field="reference_mode",
            rule=mode,
            value=job.reference_mode,
        )


def need_all(job: VideoJob, references: ReferenceImages) -> None:
    """`InvalidParameters` when a reference that the job's mode needs is not there."""
    for name in NEEDS[job.reference_mode]:
        _given(references, name)


def source(job: VideoJob, references: ReferenceImages) -> SourceVideo:
    """The frames that the references are, for a model that reads clips: these stay, the others are made."""
    # One frame between a start and an end begins at the start.
    needed = NEEDS[job.reference_mode][: 1 if job.frames == 1 else None]
    kept = {-1 if name == "end" else 0: _given(references, name) for name in needed}
    return SourceVideo(frames=kept, masks={at: Picture.new("L", (1, 1), 0) for at in kept})


def known_latents(
    job: VideoJob, plan: Plan, references: ReferenceImages, codec: Codec, shape: tuple[int, ...]
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
        still = codec.encode(fitted(_given(references, "end"), width, height), frames=frames)
        for at in (at for at in plan.held if at < 0):
            known[:, :, at] = still[:, :, at]
    return known


def delivered(job: VideoJob, plan: Plan, frames: torch.Tensor) -> torch.Tensor:
    """As many as the job asks for of the frames that were generated. A clip that only ends on a picture loses
    its first ones: its last frame is the one that was held."""
    if job.reference_mode == "end" and plan.held_steps > 0:
        return frames[-job.frames :]
    return frames[: job.frames]


def _given(references: ReferenceImages, name: str) -> Image:
    image: Image | None = getattr(references, name)
    if image is None:
        raise InvalidParameters(
            f"The {name} reference is missing.", field="reference_mode", rule=f"a {name} reference"
        )
    return image


class ReferenceGuidance:
    """Keeps the known latents known while a solver walks its noise levels, and tells the model the rest.

    `known` and `noise` have the shape of the latents, (1, channels, latent frames, rows, columns).
    """

    def __init__(
        self, plan: Plan, known: torch.Tensor, noise: torch.Tensor, condition: Condition = UNCONDITIONED
    ) -> None:
        self.plan = plan
        self.condition = condition
        self._known = known
        self._noise = noise

    def begin(self, level: float) -> torch.Tensor:
        """The latents that denoising starts from, at noise level `level`."""
        return self._at(level) if self.plan.backend == "sdedit" else self._noise

    def inputs(self, latents: torch.Tensor, *, step: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the model is called with in step `step`, beside timestep and prompt."""
        return self.condition.inputs(latents, dtype=dtype, control=self.plan.control_in(step))

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
        return self.plan.held if step < self.plan.held_steps else ()

    def _at(self, level: float) -> torch.Tensor:
        return (1 - level) * self._known + level * self._noise
