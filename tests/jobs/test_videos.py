"""Wan payloads: reference modes, sizes, frames, derived guidance."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import CallerError, InvalidParameters
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import VideoJob

A, B, C = (f"https://assets.example.com/{name}.png" for name in "abc")


def payload(kind: str = "video_fast", **fields: Any) -> dict[str, Any]:
    return {"id": "v", "type": kind, "prompt": "a stream", "user_id": "u", **fields}


def video(kind: str = "video_fast", **fields: Any) -> VideoJob:
    job = parse(payload(kind, **fields), Defaults())
    assert isinstance(job, VideoJob)
    return job


def error_field(kind: str = "video_fast", **fields: Any) -> str | None:
    with pytest.raises(CallerError) as refused:
        parse(payload(kind, **fields), Defaults())
    return refused.value.field


@pytest.mark.parametrize(
    ("config", "mode", "kept"),
    [
        ({}, "none", (None, None, None)),
        ({"image": A}, "single", (A, None, None)),
        ({"first_frame": B}, "start", (None, B, None)),
        ({"last_frame": C}, "end", (None, None, C)),
        ({"first_frame": B, "last_frame": C}, "both", (None, B, C)),
        ({"image": A, "first_frame": B}, "start", (None, B, None)),
        ({"image": A, "last_frame": C}, "end", (None, None, C)),
        ({"image": A, "first_frame": B, "reference_mode": "single"}, "single", (A, None, None)),
        ({"first_frame": B, "last_frame": C, "reference_mode": "end"}, "end", (None, None, C)),
        ({"image": A, "first_frame": B, "reference_mode": "none"}, "none", (None, None, None)),
        ({"image": "file:///x", "reference_mode": "none"}, "none", (None, None, None)),
    ],
)
def test_the_mode_follows_the_references_unless_it_is_named(
    config: dict[str, Any], mode: str, kept: tuple[str | None, str | None, str | None]
) -> None:
    """Only the references that the mode uses stay in the job."""
    job = video(config=config)
    assert job.reference_mode == mode
    assert (job.single_reference, job.start_reference, job.end_reference) == kept


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"frames": 11, "width": 64, "height": 64}, "config.frames"),
        ({"frame_num": 11, "size": "64*64"}, "config.frame_num"),
        ({"width": 128, "height": 64}, "config.width"),
        ({"size": "640*64"}, "config.size"),
        ({}, "config.frames"),
    ],
)
def test_a_clip_above_the_pixel_limit_is_rejected(config: dict[str, Any], field: str) -> None:
    """Otherwise the job would fail minutes later for lack of memory."""
    with pytest.raises(CallerError) as refused:
        parse(payload(config=config), Defaults(wan_size=(64, 64), wan_frame_pixels=10 * 64 * 64))
    assert (refused.value.code, refused.value.field) == ("INVALID_PARAMETERS", field)
    assert refused.value.rule == "frames x width x height of at most 40960"
    assert refused.value.value > 40960


def test_a_clip_at_the_pixel_limit_is_accepted() -> None:
    """An image job counts as one frame."""
    limited = Defaults(wan_frame_pixels=10 * 64 * 64)
    assert parse(payload(config={"frames": 10, "size": "64*64"}), limited).frames == 10
    assert parse(payload("image_fast", config={"size": "640*64"}), limited).frames == 1


def test_references_in_config_take_precedence_over_metadata() -> None:
    """A payload may have both."""
    metadata = {"reference_image_url": A, "start_reference_url": B, "end_reference_url": C}
    assert video(metadata=metadata).reference_mode == "both"
    assert video(config={"first_frame": A}, metadata=metadata).start_reference == A


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        ("single", {"first_frame": B}),
        ("start", {"last_frame": C}),
        ("end", {"first_frame": B}),
        ("both", {"first_frame": B}),
        ("both", {}),
        ("middle", {"image": A}),
    ],
)
def test_a_mode_without_its_reference_is_rejected(mode: str, config: dict[str, Any]) -> None:
    """Generating silently without it would be worse."""
    assert error_field(config={**config, "reference_mode": mode}) == "config.reference_mode"


def test_the_error_of_a_mode_names_the_missing_reference() -> None:
    """It lists the paths at which the reference may be."""
    with pytest.raises(InvalidParameters) as refused:
        parse(payload(config={"reference_mode": "both", "first_frame": B}), Defaults())
    assert (refused.value.field, refused.value.value) == ("config.reference_mode", "both")
    assert "both needs config.last_frame or metadata.end_reference_url" in (refused.value.rule or "")
    assert "missing" not in refused.value.message


@pytest.mark.parametrize(
    ("resolution", "size"),
    [
        ("1024x1024", (624, 624)),
        ("1024x576", (832, 480)),
        ("576x1024", (480, 832)),
        ("1152*896", (624, 624)),
        ("16:9", (832, 480)),
        ("9:16", (480, 832)),
        ("1x99999", (480, 832)),
    ],
)
def test_resolution_only_names_an_aspect(resolution: str, size: tuple[int, int]) -> None:
    """The live caller sends SDXL sizes there, which Wan does not support."""
    job = video(config={"resolution": resolution})
    assert (job.width, job.height) == size


@pytest.mark.parametrize("resolution", ["wide", "0x5", "5x0", 1024, ["1:1"], "x", "1024x1024x3"])
def test_a_resolution_without_an_aspect_is_rejected(resolution: object) -> None:
    """No size can be derived from it."""
    assert error_field(config={"resolution": resolution}) == "config.resolution"


def test_an_explicit_size_takes_precedence_over_an_aspect() -> None:
    """Width and height come first, then `size`, then `resolution`."""
    config = {"width": 320, "height": 192, "size": "64*64", "resolution": "1:1"}
    assert (video(config=config).width, video(config=config).height) == (320, 192)
    assert video(config={"size": "832*480", "resolution": "1:1"}).width == 832


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"size": "488*832"}, "config.size"),
        ({"width": 488, "height": 832}, "config.width"),
        ({"width": 480}, "config.height"),
    ],
)
def test_sizes_are_multiples_of_sixteen(config: dict[str, Any], field: str) -> None:
    """An explicit size is used exactly or rejected."""
    assert error_field(config=config) == field


@pytest.mark.parametrize(
    ("fields", "guidance"),
    [
        ({"metadata": {"reference_strength": 0.5}}, 7.0),
        ({"metadata": {"reference_strength": 0.9}}, 8.6),
        ({"config": {"reference_strength": 0}}, 5.0),
        ({"metadata": {"reference_strength": 0.5, "denoise_strength": 0.2}}, 7.0),
        ({"metadata": {"reference_strength": 0.5}, "config": {"guidance_scale": 4}}, 4.0),
        ({"metadata": {"reference_strength": 0.5}, "config": {"sample_guide_scale": 0}}, 0.0),
        ({"metadata": {"denoise_strength": 0.5}}, 6.5),
    ],
)
def test_guidance_is_derived_from_a_reference_strength(fields: dict[str, Any], guidance: float) -> None:
    """Only if the payload has no guidance scale of its own."""
    assert video(**fields).guidance_scale == guidance


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (161, 161), ("33", 33), (None, 83)])
def test_the_number_of_frames_is_the_callers(frames: object, expected: int) -> None:
    """It is not rounded to the 4n+1 frames of the model."""
    assert video(config={"frames": frames}).frames == expected
    assert video(config={"frame_num": frames}).frames == expected


@pytest.mark.parametrize("frames", [0, 162, 8.5, True])
def test_other_frame_counts_are_rejected(frames: object) -> None:
    """0 is invalid, not absent."""
    assert error_field(config={"frames": frames}) == "config.frames"


def test_an_image_job_has_one_frame() -> None:
    """Its asset is a PNG; more frames would be discarded."""
    assert video("image_fast", config={"frame_num": 1}).frames == 1
    assert video("image_fast").frames == 1
    assert error_field("image_fast", config={"frame_num": 83}) == "config.frame_num"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"sample_solver": "euler"}, "config.sample_solver"),
        ({"sample_shift": 31}, "config.sample_shift"),
        ({"fps": 7}, "config.fps"),
        ({"num_images": 3}, "config.num_images"),
        ({"enhance_prompt": "maybe"}, "config.enhance_prompt"),
    ],
)
def test_invalid_wan_fields_are_rejected(config: dict[str, Any], field: str) -> None:
    """One image or clip per job, two solvers, documented ranges."""
    assert error_field(config=config) == field


def test_enhancement_follows_the_type_unless_the_payload_decides() -> None:
    """`config.enhance_prompt` overrides the catalog."""
    assert video("video7b_fast_enhanced").enhance_prompt is True
    assert video("video7b_fast_enhanced", config={"enhance_prompt": False}).enhance_prompt is False
    assert video(config={"enhance_prompt": True}).enhance_prompt is True
    assert video().enhance_prompt is False


def test_an_enhancement_has_512_tokens_at_0_7_unless_given() -> None:
    """The documented defaults, and values of the payload."""
    job = video()
    assert (job.enhance_tokens, job.enhance_temperature) == (512, 0.7)
    job = video(config={"max_tokens": "64", "temperature": 0})
    assert (job.enhance_tokens, job.enhance_temperature) == (64, 0.0)
    with pytest.raises(CallerError) as refused:
        video(config={"temperature": 3})
    assert refused.value.field == "config.temperature"


def test_the_system_prompt_comes_from_config_or_metadata() -> None:
    """It steers the enhancement, so the safety gate checks it too."""
    job = video(config={"system_prompt": "c"}, metadata={"system_prompt": "m"})
    assert job.system_prompt == "c"
    assert video(metadata={"system_prompt": "m"}).system_prompt == "m"
    assert "c" in job.texts()
