"""Parses Wan payloads."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, fill_in, invalid_value, or_default
from ourvidz.jobs.generation import (
    parse_size,
    prompt_missing,
    read_guidance_scale,
    read_reference_strength,
    read_sampling,
    read_sides,
    sampling_defaults,
)
from ourvidz.jobs.job import ReferenceMode, VideoJob
from ourvidz.jobs.ranges import (
    CONVERSATION_CHARS,
    FPS,
    FRAMES,
    MAX_TOKENS,
    SHIFT,
    TEMPERATURE,
    WAN_ASPECTS,
    WAN_SIDE_PX,
)
from ourvidz.jobs.urls import read_reference

SOLVERS = ("unipc", "dpm++")
MODES: tuple[str, ...] = get_args(ReferenceMode)
REQUIRED_REFERENCES: dict[str, tuple[str, ...]] = {
    "none": (),
    "single": ("single",),
    "start": ("start",),
    "end": ("end",),
    "both": ("start", "end"),
}
FRAME_PATHS = ("config.frames", "config.frame_num")
REFERENCE_PATHS: dict[str, tuple[str, str]] = {
    "single": ("config.image", "metadata.reference_image_url"),
    "start": ("config.first_frame", "metadata.start_reference_url"),
    "end": ("config.last_frame", "metadata.end_reference_url"),
}
_ASPECT = re.compile(r"\s*0*([1-9][0-9]{0,4})\s*[xX*×:]\s*0*([1-9][0-9]{0,4})\s*")


def parse_video(fields: Fields, row: JobType, common: dict[str, Any], defaults: Defaults) -> VideoJob:
    """Parse a Wan payload. Raises `InvalidPrompt` if it has no prompt."""
    size, frames = _size(fields), _frames(fields, row)
    width, height = size or defaults.wan_size
    all_frames = or_default(frames, row.frames or 1)
    check_frame_pixels(_size_path(fields), all_frames, (width, height), limit=defaults.wan_frame_pixels)
    prompt = fields.prompt()
    if not prompt:
        raise prompt_missing()
    sent = {
        **common,
        **(read_sampling(fields, row, defaults) | _derived_guidance(fields)),
        **_references(fields, common["user_id"]),
        "prompt": prompt,
        "negative_prompt": fields.text("config.negative_prompt"),
        "width": size and size[0],
        "height": size and size[1],
        "frames": frames,
        "fps": fields.integer("config.fps", within=FPS),
        "solver": fields.choice("config.sample_solver", among=SOLVERS),
        "shift": fields.number("config.sample_shift", within=SHIFT),
        "enhance_prompt": fields.boolean("config.enhance_prompt"),
        "system_prompt": fields.text(
            "config.system_prompt", "metadata.system_prompt", limit=CONVERSATION_CHARS
        ),
        "enhance_tokens": fields.integer("config.max_tokens", within=MAX_TOKENS),
        "enhance_temperature": fields.number("config.temperature", within=TEMPERATURE),
    }
    clip = {"width": width, "height": height, "frames": all_frames, "enhance_prompt": row.enhance}
    installation = {"negative_prompt": defaults.wan_negative_prompt}
    return VideoJob(**fill_in(sent, sampling_defaults(row) | clip | installation))


def check_frame_pixels(path: str, frames: int, size: tuple[int, int], *, limit: int | None) -> None:
    """Raise `InvalidParameters` for the value at `path` if frames x width x height exceeds `limit` pixels.

    `size` is (width, height) in pixels; a `limit` of None allows any size.
    """
    width, height = size
    if limit is None or frames * width * height <= limit:
        return
    rule = f"frames x width x height of at most {limit}"
    fit = limit // (width * height)
    raise InvalidParameters(
        f"{frames} frames of {width}x{height} px are too many: {rule}, here {fit} frames.",
        field=path,
        rule=rule,
        value=frames * width * height,
    )


def _size_path(fields: Fields) -> str:
    """The path to name in an error about the size of a clip: its frames, else its size."""
    field = fields.first(*FRAME_PATHS, "config.width", "config.size", "config.resolution")
    return FRAME_PATHS[0] if field is None else field.path


def _frames(fields: Fields, row: JobType) -> int | None:
    """The number of frames; None if the payload has none."""
    if row.output == "png":
        return fields.one_of(*FRAME_PATHS, numbers=(1,))
    return fields.integer(*FRAME_PATHS, within=FRAMES)


def _derived_guidance(fields: Fields) -> dict[str, float]:
    """The guidance scale of payloads that have a `reference_strength` and no guidance: 5 + 4 x strength."""
    strength = read_reference_strength(fields)
    if strength is None or read_guidance_scale(fields) is not None:
        return {}
    return {"guidance_scale": round(5.0 + 4.0 * strength, 6)}


def _size(fields: Fields) -> tuple[int, int] | None:
    """Width and height (px): `width` and `height`, `size`, or the aspect of `resolution`; else None."""
    return (
        read_sides(fields, WAN_SIDE_PX)
        or parse_size(fields.first("config.size"), WAN_SIDE_PX)
        or _aspect(fields)
    )


def _aspect(fields: Fields) -> tuple[int, int] | None:
    """The Wan size whose aspect is nearest to that of `config.resolution`, where callers send SDXL sizes."""
    field = fields.first("config.resolution")
    if field is None:
        return None
    pair = _ASPECT.fullmatch(field.value) if isinstance(field.value, str) else None
    if pair is None:
        raise invalid_value(field.path, "WIDTHxHEIGHT, of which only the aspect counts", field.value)
    aspect = math.log(int(pair[1]) / int(pair[2]))
    return min(WAN_ASPECTS, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))


def _references(fields: Fields, owner: str) -> dict[str, str | None]:
    """The reference mode and the references it uses, by job field name. An explicit mode whose references are
    missing is an error."""
    explicit = fields.choice("config.reference_mode", among=MODES)
    if explicit == "none":
        return {"reference_mode": "none"}
    references = {
        name: read_reference(fields, *paths, owner=owner) for name, paths in REFERENCE_PATHS.items()
    }
    mode = explicit or _derive_mode({name for name, value in references.items() if value is not None})
    for name in REQUIRED_REFERENCES[mode]:
        if references[name] is None:
            rule = f"a mode whose references are given ({mode} needs {' or '.join(REFERENCE_PATHS[name])})"
            raise invalid_value("config.reference_mode", rule, mode)
    # None: a mode that follows from the references was not sent.
    return {"reference_mode": explicit or (None if mode == "none" else mode)} | {
        f"{name}_reference": references[name] for name in REQUIRED_REFERENCES[mode]
    }


def _derive_mode(names: set[str]) -> str:
    """The reference mode for these references: start and end take precedence over single."""
    if {"start", "end"} <= names:
        return "both"
    return next((name for name in ("start", "end", "single") if name in names), "none")
