"""What SDXL and Wan jobs have in common: sampling, strength, references, where files go."""

from __future__ import annotations

import re
from typing import Any

from ourvidz.errors import CallerError, InvalidPrompt
from ourvidz.jobs.catalog import DEFAULT_BUCKET, WRITE_BUCKETS, JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, Found, either, missing, refused
from ourvidz.jobs.ranges import GUIDANCE, SEED, STEPS, STRENGTH, Range

REFERENCE_TYPES = ("style", "composition", "character")
STRENGTH_PLACES = ("metadata.{}", "config.{}", "{}")
_SIZE = re.compile(r"\s*([0-9]{1,5})\s*[xX*×]\s*([0-9]{1,5})\s*")
_PLACES = 6
"""Decimals kept of a derived number: 1 - 0.9 is 0.1 to a caller."""


def sampling(fields: Fields, row: JobType, defaults: Defaults) -> dict[str, Any]:
    """Steps, guidance, number of images, seed, strength, reference type and bucket of one job."""
    given = fields.integer("config.seed", "metadata.seed", within=SEED)
    return {
        "steps": either(
            fields.integer("config.steps", "config.num_inference_steps", "config.sample_steps", within=STEPS),
            row.steps,
        ),
        "guidance_scale": either(guidance(fields), row.guidance_scale),
        "num_images": either(num_images(fields, row), 1),
        "seed": defaults.draw_seed() if given is None else given,
        "seed_drawn": given is None,
        "denoise_strength": denoise_strength(fields),
        "reference_type": fields.choice("metadata.reference_type", among=REFERENCE_TYPES),
        "bucket": either(fields.choice("bucket", among=WRITE_BUCKETS), DEFAULT_BUCKET),
    }


def guidance(fields: Fields) -> float | None:
    """The guidance scale the caller gave."""
    return fields.number("config.guidance_scale", "config.sample_guide_scale", within=GUIDANCE)


def num_images(fields: Fields, row: JobType) -> int | None:
    """The number of images the caller gave, one of those the type allows."""
    return fields.one_of(
        "config.num_images", "config.batch_size", "metadata.num_images", numbers=row.num_images
    )


def reference_strength(fields: Fields) -> float | None:
    """How close to stay to the reference, 0 to 1: the older opposite of `denoise_strength`."""
    return fields.number(*(place.format("reference_strength") for place in STRENGTH_PLACES), within=STRENGTH)


def denoise_strength(fields: Fields) -> float:
    """How far to go from the reference, 0 to 1."""
    given = fields.number(*(place.format("denoise_strength") for place in STRENGTH_PLACES), within=STRENGTH)
    if given is not None:
        return given
    strength = reference_strength(fields)
    return 0.15 if strength is None else round(1 - strength, _PLACES)


def need_prompt() -> CallerError:
    """The error for a job that cannot do without a prompt, to be raised."""
    return missing("prompt", "this job needs a prompt", error=InvalidPrompt)


def sides(fields: Fields, within: Range) -> tuple[int, int] | None:
    """`config.width` and `config.height` in pixels; one without the other is an error."""
    width = fields.integer("config.width", within=within)
    height = fields.integer("config.height", within=within)
    if width is None and height is None:
        return None
    if width is None:
        raise missing("config.width", "config.height goes with config.width")
    if height is None:
        raise missing("config.height", "config.width goes with config.height")
    return width, height


def written_size(found: Found | None, within: Range) -> tuple[int, int] | None:
    """A size in one string, such as 1024x1024 or 480*832, in pixels."""
    if found is None:
        return None
    pair = _SIZE.fullmatch(found.value) if isinstance(found.value, str) else None
    size = (int(pair[1]), int(pair[2])) if pair else (0, 0)
    if size[0] not in within or size[1] not in within:
        raise refused(found.path, f"WIDTHxHEIGHT, each {within.rule}", found.value)
    return size
