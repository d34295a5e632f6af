"""Parses SDXL payloads."""

from __future__ import annotations

from typing import Any

from ourvidz.jobs.catalog import JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, fill_in
from ourvidz.jobs.generation import parse_size, prompt_missing, read_sampling, read_sides, sampling_defaults
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.loras import read_loras
from ourvidz.jobs.ranges import EXACT_COPY_DENOISE, SDXL_SIDE_PX
from ourvidz.jobs.urls import read_reference


def parse_image(fields: Fields, row: JobType, common: dict[str, Any], defaults: Defaults) -> ImageJob:
    """Parse an SDXL payload. Raises `InvalidPrompt` if it has no prompt and is no exact copy."""
    size = _size(fields)
    sent = {
        **common,
        **read_sampling(fields, row, defaults),
        "prompt": fields.prompt(),
        "negative_prompt": fields.text(
            "negative_prompt", "config.negative_prompt", "metadata.negative_prompt"
        ),
        "width": size and size[0],
        "height": size and size[1],
        "reference": read_reference(
            fields, "config.image", "metadata.reference_image_url", owner=common["user_id"]
        ),
        "exact_copy_mode": fields.boolean("metadata.exact_copy_mode"),
        "compel_enabled": fields.boolean("compel_enabled", "metadata.compel_enabled"),
        "compel_weights": fields.text("compel_weights", "metadata.compel_weights"),
        "loras": read_loras(fields, defaults.loras) or None,
    }
    width, height = defaults.sdxl_size
    installation = {"width": width, "height": height, "negative_prompt": defaults.negative_prompt}
    job = ImageJob(**fill_in(sent, sampling_defaults(row) | installation))
    if job.mode == "exact_copy":
        return _exact_copy(job)
    if not job.prompt:
        raise prompt_missing()
    return job


def _size(fields: Fields) -> tuple[int, int] | None:
    """Width and height (px): `width` and `height`, `resolution` or `size`; else None."""
    return (
        read_sides(fields, SDXL_SIDE_PX)
        or parse_size(fields.first("config.resolution"), SDXL_SIDE_PX)
        or parse_size(fields.first("config.size"), SDXL_SIDE_PX)
    )


def _exact_copy(job: ImageJob) -> ImageJob:
    """The job with the fixed settings of an exact copy: 6 to 10 steps at a strength of at most 0.05, without
    guidance."""
    denoise = min(job.denoise_strength, EXACT_COPY_DENOISE)
    fixed = {
        "denoise_strength": denoise,
        "guidance_scale": 1.0,
        "negative_prompt": None,
        "steps": round(6 + 4 * denoise / EXACT_COPY_DENOISE),
    }
    not_sent = job.defaulted | fixed.keys() - {"denoise_strength"}
    return job.model_copy(update={**fixed, "defaulted": not_sent})
