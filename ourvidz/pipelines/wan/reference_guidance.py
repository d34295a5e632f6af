"""Conditions Wan's text-to-video model, which has no image input, on reference images.

There are two methods, both without additional weights:

- Latent replacement. The known latent frames follow the straight path from the noise to the reference,
  whatever the model predicts for them; the model generates the other frames.
- SDEdit (https://arxiv.org/abs/2108.01073). Denoising starts at a noise level below 1 from the reference with
  that much noise: the lower the level, the more of the reference remains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL.Image import Image
from PIL.Image import new as new_image

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import ReferenceMode, VideoJob
from ourvidz.jobs.videos import REQUIRED_REFERENCES
from ourvidz.pipelines.base import ReferenceImages, SourceVideo
from ourvidz.pipelines.wan.checkpoint import WanModel
from ourvidz.pipelines.wan.extra_inputs import NO_EXTRA_INPUTS, ExtraInputs
from ourvidz.pipelines.wan.vae import VideoVAE, frames_to_generate, image_tensor, later_latent_frames

LatentsBackend = Literal["latent_replacement", "sdedit"]
ReferenceBackend = Literal["latent_replacement", "sdedit", "vace", "image_to_video"]

REQUIRED_MODE: dict[WanModel, ReferenceMode] = {"i2v": "start", "flf2v": "both"}
"""The only reference mode of the models that require reference images."""
MAX_CUT_FRAMES = 2
"""If this many of the last latent frame's four frames are cut off, the remaining ones do not show the end
reference yet."""
MIN_START = 1e-3
"""The lowest starting noise level of SDEdit: at 0 there would be no step to run."""


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """How the reference images of one job are used.

    Denoising starts at noise level `start` (0 to 1) and runs `steps` steps. `backend` is the method applied
    to the latents, if any. The latent frames `held_frames` (0 the first, -1 the last) are fixed during the
    first `held_steps` steps. `model` is the model that runs; VACE's blocks have the weight `control_scale` (0
    to 1) during the first `control_steps` steps. `input_backend` names the model input that receives the
    references, if the model has one.
    """

    backend: LatentsBackend | None
    start: float
    steps: int
    held_frames: tuple[int, ...] = ()
    held_steps: int = 0
    model: WanModel = "t2v"
    control_scale: float = 0.0
    control_steps: int = 0
    input_backend: Literal["vace", "image_to_video"] | None = None

    @property
    def reference_backend(self) -> ReferenceBackend | None:
        """`reference_backend` of the callback's metadata."""
        return self.input_backend or self.backend

    def control_scale_at(self, step: int) -> float:
        """The weight of VACE's blocks in this step."""
        return self.control_scale if step < self.control_steps else 0.0


def plan_references(job: VideoJob, model: WanModel = "t2v", *, has_source: bool = False) -> ReferencePlan:
    """Choose how `model` uses the references of `job`, from its mode and `denoise_strength`. `has_source`:
    a source video is given to VACE. Raises `InvalidParameters` for a mode that the model does not have."""
    if model in REQUIRED_MODE:
        _check_mode(job, REQUIRED_MODE[model])
        return ReferencePlan(None, 1.0, job.steps, model=model, input_backend="image_to_video")
    plan = _plan_latents(job)
    if model == "t2v":
        return plan
    if job.reference_mode == "none":
        # Without references VACE receives a control video that is to be generated completely, as in training.
        backend: Literal["vace"] | None = "vace" if has_source else None
        return replace(plan, model="vace", control_scale=1.0, control_steps=job.steps, input_backend=backend)
    if job.frames == 1:
        # With full weight VACE would return the reference, as fixing the only frame would.
        scale, steps = 1 - job.denoise_strength, plan.steps
    else:
        scale, steps = 1.0, plan.held_steps
    return replace(plan, model="vace", control_scale=scale, control_steps=steps, input_backend="vace")


def _plan_latents(job: VideoJob) -> ReferencePlan:
    """The plan for models without an image input. VACE follows it too, for the latents."""
    strength = job.denoise_strength
    if job.reference_mode == "none":
        return ReferencePlan(None, 1.0, job.steps)
    if job.frames == 1:
        # Fixing the only frame would return the reference itself.
        return ReferencePlan("sdedit", max(MIN_START, strength), partial_steps(job.steps, strength))
    if job.reference_mode == "single":
        start = 0.7 + 0.3 * strength
        steps = partial_steps(job.steps, start)
        return ReferencePlan("sdedit", start, steps, (0,), held_steps(steps, strength))
    held_frames = {"start": (0,), "end": (-1,), "both": (0, *_end_frames(job.frames))}[job.reference_mode]
    return ReferencePlan("latent_replacement", 1.0, job.steps, held_frames, held_steps(job.steps, strength))


def _end_frames(frames: int) -> tuple[int, ...]:
    """The latent frames to fix at the end of a clip in the mode "both", which has fixed frames at its start.
    Only the later frames of the last latent frame show the reference; if they are cut off, the last latent
    frame but one is fixed too."""
    cut = frames_to_generate(frames) - frames
    return (-2, -1) if cut >= MAX_CUT_FRAMES and later_latent_frames(frames) > 1 else (-1,)


def partial_steps(steps: int, strength: float) -> int:
    """The number of steps that run when denoising starts at noise level `strength`: at least 1."""
    return max(1, int(round(steps * strength, 6)))


def held_steps(steps: int, strength: float) -> int:
    """The number of steps in which the reference frames are fixed: all steps up to a strength of 0.5; above
    that the last steps, a proportion of 2 · strength − 1, are free."""
    return steps - round(steps * max(0.0, 2 * strength - 1))


def _check_mode(job: VideoJob, mode: ReferenceMode) -> None:
    """Raise `InvalidParameters` unless the job has this reference mode."""
    if job.reference_mode != mode:
        raise InvalidParameters(
            f"This checkpoint makes clips of the mode {mode} alone.",
            field="reference_mode",
            rule=mode,
            value=job.reference_mode,
        )


def check_references(job: VideoJob, references: ReferenceImages) -> None:
    """Raise `InvalidParameters` if a reference that the job's mode needs is missing."""
    for name in REQUIRED_REFERENCES[job.reference_mode]:
        _require(references, name)


def source_video(job: VideoJob, references: ReferenceImages) -> SourceVideo:
    """The references as a source video: their frames are kept, all others are generated."""
    # A single frame between a start and an end reference shows the start.
    names = REQUIRED_REFERENCES[job.reference_mode][: 1 if job.frames == 1 else None]
    frames = {-1 if name == "end" else 0: _require(references, name) for name in names}
    return SourceVideo(frames=frames, masks={frame: new_image("L", (1, 1), 0) for frame in frames})


def known_latents(
    job: VideoJob, plan: ReferencePlan, references: ReferenceImages, vae: VideoVAE, shape: tuple[int, ...]
) -> torch.Tensor:
    """The latents of the references in a tensor of `shape`; zeros, which are not used, in other frames."""
    frames, (width, height) = vae.num_frames(shape), vae.size(shape)
    if plan.backend == "sdedit":
        # A single frame between a start and an end reference shows the start.
        image = image_tensor(_require(references, REQUIRED_REFERENCES[job.reference_mode][0]), width, height)
        return vae.encode(image, frames=frames)
    known = vae.zeros(shape)
    if 0 in plan.held_frames:
        image = image_tensor(_require(references, "start"), width, height)
        known[:, :, 0] = vae.encode(image)[:, :, 0]
    if -1 in plan.held_frames:
        # The VAE is causal: the last latent frame depends on earlier frames. That of a still clip is nearest
        # to that of a clip which ends on the reference.
        still = vae.encode(image_tensor(_require(references, "end"), width, height), frames=frames)
        for frame in (frame for frame in plan.held_frames if frame < 0):
            known[:, :, frame] = still[:, :, frame]
    return known


def cut_surplus_frames(job: VideoJob, plan: ReferencePlan, frames: torch.Tensor) -> torch.Tensor:
    """The frames to deliver, `job.frames` of those generated, (frames, 3, height, width). The surplus is cut
    off at the end; at the start in the mode "end", whose last frame shows the reference."""
    if job.reference_mode == "end" and plan.held_steps > 0:
        return frames[-job.frames :]
    return frames[: job.frames]


def _require(references: ReferenceImages, name: str) -> Image:
    """The reference with this name. Raises `InvalidParameters` if it is missing."""
    image: Image | None = getattr(references, name)
    if image is None:
        raise InvalidParameters(
            f"The {name} reference is missing.", field="reference_mode", rule=f"a {name} reference"
        )
    return image


class ReferenceGuidance:
    """Applies a plan during denoising: fixes the known latent frames and provides the model's extra inputs.

    `known` and `noise` have the shape of the latents, (1, channels, latent frames, rows, columns).
    """

    def __init__(
        self,
        plan: ReferencePlan,
        known: torch.Tensor,
        noise: torch.Tensor,
        extra_inputs: ExtraInputs = NO_EXTRA_INPUTS,
    ) -> None:
        self.plan = plan
        self.extra_inputs = extra_inputs
        self._known = known
        self._noise = noise

    def initial_latents(self, sigma: float) -> torch.Tensor:
        """The latents that denoising starts from, at noise level `sigma`."""
        return self._known_at(sigma) if self.plan.backend == "sdedit" else self._noise

    def model_inputs(
        self, latents: torch.Tensor, *, step: int, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """The transformer's arguments in this step, except timestep and prompt."""
        scale = self.plan.control_scale_at(step)
        return self.extra_inputs.model_inputs(latents, dtype=dtype, control_scale=scale)

    def fix_velocity(self, velocity: torch.Tensor, *, step: int) -> torch.Tensor:
        """Replace the predicted velocity of the fixed frames by the one that leads to the known latents.
        Modifies and returns `velocity`.

        Multistep solvers use the velocities of earlier steps. If only the latents were replaced, a frame that
        is no longer fixed would return to where the predictions had led.
        """
        for frame in self._held_frames(step):
            velocity[:, :, frame] = self._noise[:, :, frame] - self._known[:, :, frame]
        return velocity

    def fix_latents(self, latents: torch.Tensor, *, step: int, sigma: float) -> torch.Tensor:
        """Replace the fixed frames after this step by the known latents at noise level `sigma`. Modifies and
        returns `latents`."""
        for frame in self._held_frames(step):
            latents[:, :, frame] = self._known_at(sigma)[:, :, frame]
        return latents

    def _held_frames(self, step: int) -> tuple[int, ...]:
        """The latent frames that are fixed to the reference at this step."""
        return self.plan.held_frames if step < self.plan.held_steps else ()

    def _known_at(self, sigma: float) -> torch.Tensor:
        """The known latents with noise of level `sigma`."""
        return (1 - sigma) * self._known + sigma * self._noise
