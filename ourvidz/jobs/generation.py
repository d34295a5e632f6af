"""Reads the fields that SDXL and Wan payloads share: sampling, strength, size, bucket."""

from __future__ import annotations

import re
from typing import Any

from ourvidz.errors import CallerError, InvalidPrompt
from ourvidz.jobs.catalog import WRITE_BUCKETS, JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, FieldValue, invalid_value, missing_field
from ourvidz.jobs.ranges import GUIDANCE, SEED, STEPS, STRENGTH, Range

REFERENCE_TYPES = ("style", "composition", "character")
STRENGTH_PATHS = ("metadata.{}", "config.{}", "{}")
"""Where callers write a strength; `{}` is its name."""
_SIZE = re.compile(r"\s*([0-9]{1,5})\s*[xX*×]\s*([0-9]{1,5})\s*")
_DECIMALS = 6
"""Derived numbers are rounded to these: 1 - 0.9 is reported as 0.1."""


def read_sampling(fields: Fields, row: JobType, defaults: Defaults) -> dict[str, Any]:
    """Read steps, guidance, number of images, seed, strength, reference type and bucket, by job field name.
    None for what the payload does not have; a seed is drawn."""
    seed = fields.integer("config.seed", "metadata.seed", within=SEED)
    return {
        "steps": fields.integer(
            "config.steps", "config.num_inference_steps", "config.sample_steps", within=STEPS
        ),
        "guidance_scale": read_guidance_scale(fields),
        "num_images": read_num_images(fields, row),
        "seed": defaults.draw_seed() if seed is None else seed,
        "seed_drawn": seed is None,
        "denoise_strength": read_denoise_strength(fields),
        "reference_type": fields.choice("metadata.reference_type", among=REFERENCE_TYPES),
        "bucket": fields.choice("bucket", among=WRITE_BUCKETS),
    }


def sampling_defaults(row: JobType) -> dict[str, Any]:
    """The defaults of a job type for what `read_sampling` reads."""
    return {"steps": row.steps, "guidance_scale": row.guidance_scale}


def read_guidance_scale(fields: Fields) -> float | None:
    """The guidance scale; None if the payload has none."""
    return fields.number("config.guidance_scale", "config.sample_guide_scale", within=GUIDANCE)


def read_num_images(fields: Fields, row: JobType) -> int | None:
    """The number of images, one of those that the type allows; None if the payload has none."""
    return fields.one_of(
        "config.num_images", "config.batch_size", "metadata.num_images", numbers=row.num_images
    )


def read_reference_strength(fields: Fields) -> float | None:
    """`reference_strength`, 0 to 1: how close the result stays to the reference. It is the complement of the
    newer `denoise_strength`. None if the payload has none."""
    return fields.number(*(path.format("reference_strength") for path in STRENGTH_PATHS), within=STRENGTH)


def read_denoise_strength(fields: Fields) -> float | None:
    """`denoise_strength`, 0 to 1: how far the result departs from the reference. None if the payload has
    none."""
    denoise = fields.number(*(path.format("denoise_strength") for path in STRENGTH_PATHS), within=STRENGTH)
    if denoise is not None:
        return denoise
    strength = read_reference_strength(fields)
    return None if strength is None else round(1 - strength, _DECIMALS)


def prompt_missing() -> CallerError:
    """Build the error for a missing prompt; the caller raises it."""
    return missing_field("prompt", "this job needs a prompt", error=InvalidPrompt)


def read_sides(fields: Fields, within: Range) -> tuple[int, int] | None:
    """`config.width` and `config.height` in pixels; None without both. One without the other is an error."""
    width = fields.integer("config.width", within=within)
    height = fields.integer("config.height", within=within)
    if width is None and height is None:
        return None
    if width is None:
        raise missing_field("config.width", "config.height goes with config.width")
    if height is None:
        raise missing_field("config.height", "config.width goes with config.height")
    return width, height


def parse_size(field: FieldValue | None, within: Range) -> tuple[int, int] | None:
    """Width and height in pixels from one string such as 1024x1024 or 480*832; None without a value."""
    if field is None:
        return None
    pair = _SIZE.fullmatch(field.value) if isinstance(field.value, str) else None
    size = (int(pair[1]), int(pair[2])) if pair else (0, 0)
    if size[0] not in within or size[1] not in within:
        raise invalid_value(field.path, f"WIDTHxHEIGHT, each {within.rule}", field.value)
    return size
