"""The story of an image job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ourvidz import __version__
from ourvidz.errors import I2IPipelineError
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.pipelines.base import Pictures
from ourvidz.workflows.assets import keep_pictures
from ourvidz.workflows.services import Run, Services

NO_IMAGE_TO_IMAGE = "Image-to-image is not available in this version."


def generate_images(job: ImageJob, run: Run, use: Services) -> Outcome:
    """Look at the job once more, generate its pictures, and store them."""
    use.check(job)
    if job.reference is None:
        pictures = use.models.images().generate(job, on_step=run.step)
    else:
        pictures = _without_its_reference(job, run, use)
    assets = keep_pictures(pictures, job, run, use.store)
    return Outcome(status="completed", assets=assets, metadata=_findings(pictures, use))


def _without_its_reference(job: ImageJob, run: Run, use: Services) -> Pictures:
    """Fall back to the prompt alone. `I2IPipelineError` when there is no prompt to fall back to."""
    if not job.prompt:
        raise I2IPipelineError(NO_IMAGE_TO_IMAGE, field="reference")
    plain = job.model_copy(update={"reference": None})
    pictures = use.models.images().generate(plain, on_step=run.step)
    return replace(
        pictures,
        metadata=pictures.metadata
        | {
            "reference_fallback": True,
            "reference_error": I2IPipelineError.code,
            "reference_error_reason": NO_IMAGE_TO_IMAGE,
            "reference_backend": None,
        },
        asset_metadata=pictures.asset_metadata
        | {
            "denoise_strength": job.denoise_strength,
            "pipeline": "text_to_image",
            "resize_policy": None,
            "negative_prompt_used": bool(job.negative_prompt) and job.guidance_scale > 1,
        },
    )


def _findings(pictures: Pictures, use: Services) -> dict[str, Any]:
    """What the worker found out about the job."""
    return {
        **pictures.metadata,
        **use.models.memory(),
        "generation_time": round(pictures.seconds, 3),
        "worker_version": __version__,
    }
