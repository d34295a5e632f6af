"""Wan payloads."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, either, refused
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
from ourvidz.jobs.urls import reference
from ourvidz.jobs.visual import guidance, need_prompt, reference_strength, sampling, sides, written_size

SOLVERS = ("unipc", "dpm++")
MODES: tuple[str, ...] = get_args(ReferenceMode)
NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "single": ("single",),
    "start": ("start",),
    "end": ("end",),
    "both": ("start", "end"),
}
FRAME_PATHS = ("config.frames", "config.frame_num")
PATHS: dict[str, tuple[str, str]] = {
    "single": ("config.image", "metadata.reference_image_url"),
    "start": ("config.first_frame", "metadata.start_reference_url"),
    "end": ("config.last_frame", "metadata.end_reference_url"),
}
_ASPECT = re.compile(r"\s*0*([1-9][0-9]{0,4})\s*[xX*×:]\s*0*([1-9][0-9]{0,4})\s*")


def parse_video(fields: Fields, row: JobType, common: dict[str, Any], defaults: Defaults) -> VideoJob:
    """The Wan job a payload asks for."""
    width, height = _size(fields) or defaults.wan_size
    frames = _frames(fields, row)
    refuse_too_large(_path_of_most(fields), frames, (width, height), most=defaults.wan_frame_pixels)
    prompt = fields.prompt()
    if not prompt:
        raise need_prompt()
    return VideoJob(
        **common,
        **(sampling(fields, row, defaults) | _july_guidance(fields)),
        **_references(fields, common["user_id"]),
        prompt=prompt,
        negative_prompt=fields.text("config.negative_prompt"),
        width=width,
        height=height,
        frames=frames,
        fps=either(fields.integer("config.fps", within=FPS), 16),
        solver=either(fields.choice("config.sample_solver", among=SOLVERS), "unipc"),
        shift=either(fields.number("config.sample_shift", within=SHIFT), 5.0),
        enhance_prompt=either(fields.boolean("config.enhance_prompt"), row.enhance),
        system_prompt=fields.text("config.system_prompt", "metadata.system_prompt", limit=CONVERSATION_CHARS),
        enhance_tokens=either(fields.integer("config.max_tokens", within=MAX_TOKENS), 512),
        enhance_temperature=either(fields.number("config.temperature", within=TEMPERATURE), 0.7),
    )


def refuse_too_large(path: str, frames: int, size: tuple[int, int], *, most: int | None) -> None:
    """`InvalidParameters` for the value at `path` when all frames of this size (pixels) together have more
    than `most` pixels. None means any number."""
    width, height = size
    if most is None or frames * width * height <= most:
        return
    rule = f"frames x width x height of at most {most}"
    fit = most // (width * height)
    raise InvalidParameters(
        f"{frames} frames of {width}x{height} px are too many: {rule}, here {fit} frames.",
        field=path,
        rule=rule,
        value=frames * width * height,
    )


def _path_of_most(fields: Fields) -> str:
    """Where the caller said how large the clip is: its frames, else its size."""
    found = fields.first(*FRAME_PATHS, "config.width", "config.size", "config.resolution")
    return FRAME_PATHS[0] if found is None else found.path


def _frames(fields: Fields, row: JobType) -> int:
    if row.output == "png":
        return fields.one_of(*FRAME_PATHS, numbers=(1,)) or row.frames or 1
    return fields.integer(*FRAME_PATHS, within=FRAMES) or row.frames or 1


def _july_guidance(fields: Fields) -> dict[str, float]:
    """The oldest callers send how strongly to follow the reference, and no guidance."""
    strength = reference_strength(fields)
    if strength is None or guidance(fields) is not None:
        return {}
    return {"guidance_scale": round(5.0 + 4.0 * strength, 6)}


def _size(fields: Fields) -> tuple[int, int] | None:
    return (
        sides(fields, WAN_SIDE_PX)
        or written_size(fields.first("config.size"), WAN_SIDE_PX)
        or _aspect(fields)
    )


def _aspect(fields: Fields) -> tuple[int, int] | None:
    """The size nearest to the aspect of `config.resolution`: callers send SDXL sizes there."""
    found = fields.first("config.resolution")
    if found is None:
        return None
    pair = _ASPECT.fullmatch(found.value) if isinstance(found.value, str) else None
    if pair is None:
        raise refused(found.path, "WIDTHxHEIGHT, of which only the aspect counts", found.value)
    asked = math.log(int(pair[1]) / int(pair[2]))
    return min(WAN_ASPECTS, key=lambda size: abs(math.log(size[0] / size[1]) - asked))


def _references(fields: Fields, owner: str) -> dict[str, str | None]:
    """The mode, and those references that it uses."""
    explicit = fields.choice("config.reference_mode", among=MODES)
    if explicit == "none":
        return {"reference_mode": "none"}
    given = {name: reference(fields, *paths, owner=owner) for name, paths in PATHS.items()}
    mode = explicit or _derived({name for name, value in given.items() if value is not None})
    for name in NEEDS[mode]:
        if given[name] is None:
            rule = f"a mode whose references are given ({mode} needs {' or '.join(PATHS[name])})"
            raise refused("config.reference_mode", rule, mode)
    return {"reference_mode": mode} | {f"{name}_reference": given[name] for name in NEEDS[mode]}


def _derived(given: set[str]) -> str:
    if {"start", "end"} <= given:
        return "both"
    return next((name for name in ("start", "end", "single") if name in given), "none")
