"""How a reference shapes a picture: what is done with it, where denoising begins, what is told about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import ImageJob, ReferenceType
from ourvidz.pipelines.sizes import RESIZE_POLICY, center_crop

Backend = Literal["img2img", "ip_adapter"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one job begins. `steps` denoising steps run.

    With the backend "img2img" they begin at the noise level `denoise` (0 to 1) of the reference, which has
    the size of the job then; without one, and with "ip_adapter", in pure noise. The adapter hears the
    reference in the blocks of `kind`, at `scale`.
    """

    steps: int
    denoise: float = 1.0
    backend: Backend | None = None
    reference: Image | None = None
    exact: bool = False
    kind: ReferenceType | None = None
    scale: float = 0.0

    @property
    def copied(self) -> Image | None:
        """The picture itself where nothing is to be denoised."""
        return None if self.steps else self.reference

    @property
    def latents_from(self) -> Image | None:
        """The picture that denoising begins with."""
        return self.reference if self.backend == "img2img" else None


def plan(job: ImageJob, reference: Image | None, size: tuple[int, int], *, adapter: bool) -> Plan:
    """How `job` begins at `size` pixels. `adapter`: whether an IP-Adapter is loaded."""
    if reference is None:
        return Plan(job.steps)
    if adapter and job.mode == "modify" and job.reference_type is not None:
        scale = 1 - job.denoise_strength
        return Plan(
            job.steps, backend="ip_adapter", reference=reference, kind=job.reference_type, scale=scale
        )
    fitted = center_crop(reference, *size)
    exact = job.mode == "exact_copy"
    return Plan(job.effective_steps, job.denoise_strength, "img2img", fitted, exact)


def need_reference(job: ImageJob, reference: Image | None) -> None:
    """A job that names a reference comes with one, and no other does: `InvalidParameters`."""
    if (reference is None) != (job.mode == "text_to_image"):
        missing = "lacks its reference" if reference is None else "names no reference, but has one"
        raise InvalidParameters(f"The job {missing}.", field="reference")


def about(plan: Plan, job: ImageJob, *, negative_used: bool) -> dict[str, Any]:
    """What an asset says about how its reference was used."""
    if plan.backend is None:
        return {}
    return {
        "denoise_strength": job.denoise_strength,
        "pipeline": plan.backend,
        "resize_policy": RESIZE_POLICY,
        "negative_prompt_used": negative_used,
    }
