"""SDXL payloads."""

from __future__ import annotations

from typing import Any

from ourvidz.jobs.catalog import JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, either
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.loras import loras
from ourvidz.jobs.ranges import EXACT_COPY_DENOISE, SDXL_SIDE_PX
from ourvidz.jobs.urls import reference
from ourvidz.jobs.visual import need_prompt, sampling, sides, written_size


def parse_image(fields: Fields, row: JobType, common: dict[str, Any], defaults: Defaults) -> ImageJob:
    """The SDXL job a payload asks for."""
    width, height = _size(fields) or defaults.sdxl_size
    job = ImageJob(
        **common,
        **sampling(fields, row, defaults),
        prompt=fields.prompt(),
        negative_prompt=either(
            fields.text("negative_prompt", "config.negative_prompt", "metadata.negative_prompt"),
            defaults.negative_prompt,
        ),
        width=width,
        height=height,
        reference=reference(fields, "config.image", "metadata.reference_image_url", owner=common["user_id"]),
        exact_copy_mode=either(fields.boolean("metadata.exact_copy_mode"), False),
        compel_enabled=either(fields.boolean("compel_enabled", "metadata.compel_enabled"), False),
        compel_weights=fields.text("compel_weights", "metadata.compel_weights"),
        loras=loras(fields, defaults.loras),
    )
    if job.mode == "exact_copy":
        return _exact_copy(job)
    if not job.prompt:
        raise need_prompt()
    return job


def _size(fields: Fields) -> tuple[int, int] | None:
    return (
        sides(fields, SDXL_SIDE_PX)
        or written_size(fields.first("config.resolution"), SDXL_SIDE_PX)
        or written_size(fields.first("config.size"), SDXL_SIDE_PX)
    )


def _exact_copy(job: ImageJob) -> ImageJob:
    """A copy is a few steps at a tiny strength, whatever else was asked for."""
    denoise = min(job.denoise_strength, EXACT_COPY_DENOISE)
    fixed = {
        "denoise_strength": denoise,
        "guidance_scale": 1.0,
        "negative_prompt": None,
        "steps": round(6 + 4 * denoise / EXACT_COPY_DENOISE),
    }
    return job.model_copy(update=fixed)
