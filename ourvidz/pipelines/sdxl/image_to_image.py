"""How a reference image is used: method, starting noise level, and the metadata about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import ImageJob, ReferenceType
from ourvidz.pipelines.sizes import RESIZE_POLICY, center_crop

ReferenceBackend = Literal["img2img", "ip_adapter"]


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """How the reference of one job is used, and how many denoising `steps` run.

    With the backend "img2img" denoising starts from `reference`, which has the size of the job, with noise of
    `strength` (0 to 1). Without a backend and with "ip_adapter" it starts from pure noise. With "ip_adapter"
    the UNet's blocks for `reference_type` attend to the reference with `adapter_scale` (0 to 1).
    `exact_copy` selects the schedule of exact copies.
    """

    steps: int
    strength: float = 1.0
    backend: ReferenceBackend | None = None
    reference: Image | None = None
    exact_copy: bool = False
    reference_type: ReferenceType | None = None
    adapter_scale: float = 0.0

    @property
    def copied_image(self) -> Image | None:
        """The reference, if it is the result itself because no step runs."""
        return None if self.steps else self.reference

    @property
    def initial_image(self) -> Image | None:
        """The image whose latents denoising starts from; None for pure noise."""
        return self.reference if self.backend == "img2img" else None


def plan_reference(
    job: ImageJob, reference: Image | None, size: tuple[int, int], *, has_adapter: bool
) -> ReferencePlan:
    """Choose how `job`, rendered at `size` (width and height, px), uses its reference. `has_adapter`: whether
    an IP-Adapter is loaded."""
    if reference is None:
        return ReferencePlan(job.steps)
    if has_adapter and job.mode == "modify" and job.reference_type is not None:
        return ReferencePlan(
            job.steps,
            backend="ip_adapter",
            reference=reference,
            reference_type=job.reference_type,
            adapter_scale=1 - job.denoise_strength,
        )
    return ReferencePlan(
        job.effective_steps,
        job.denoise_strength,
        "img2img",
        center_crop(reference, *size),
        exact_copy=job.mode == "exact_copy",
    )


def check_reference(job: ImageJob, reference: Image | None) -> None:
    """Raise `InvalidParameters` unless a reference image is given exactly when the job names one."""
    if (reference is None) != (job.mode == "text_to_image"):
        problem = "lacks its reference" if reference is None else "names no reference, but has one"
        raise InvalidParameters(f"The job {problem}.", field="reference")


def reference_metadata(plan: ReferencePlan, job: ImageJob, *, negative_prompt_used: bool) -> dict[str, Any]:
    """Asset metadata about the reference; empty without one."""
    if plan.backend is None:
        return {}
    return {
        "denoise_strength": job.denoise_strength,
        "pipeline": plan.backend,
        "resize_policy": RESIZE_POLICY,
        "negative_prompt_used": negative_prompt_used,
    }
