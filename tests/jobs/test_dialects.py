"""Payloads in all dialects become the same jobs, with the documented defaults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ourvidz.errors import InvalidPrompt
from ourvidz.jobs.catalog import ALIASES, CATALOG
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import AdminJob

DEFAULTS = Defaults(draw_seed=lambda: 4711)


@pytest.mark.parametrize("name", [*CATALOG, *ALIASES])
def test_every_type_and_alias_is_parsed_into_its_kind_of_job(body: Any, name: str) -> None:
    """A new row of the catalog needs no change of the parser."""
    job = parse(body(name), DEFAULTS)
    assert job.type == ALIASES.get(name, name)
    assert job.kind == job.row.kind


def test_values_that_are_left_out_come_from_the_catalog(image: Any, video: Any) -> None:
    """The defaults are the documented ones."""
    job = image()
    assert (job.steps, job.guidance_scale, job.num_images, job.expected_time) == (15, 6.0, 1, 30)
    assert (job.width, job.height, job.bucket, job.denoise_strength) == (1024, 1024, "workspace-temp", 0.15)
    clip = video()
    assert (clip.steps, clip.guidance_scale, clip.frames, clip.fps, clip.shift) == (25, 6.5, 83, 16, 5.0)
    assert (clip.width, clip.height, clip.solver, clip.expected_time) == (480, 832, "unipc", 180)


def test_an_id_is_made_where_the_caller_of_parse_supplies_one(refusal: Any) -> None:
    """Clients of synchronous routes send no job id."""
    payload = {"type": "chat", "prompt": "hello"}
    assert refusal(payload).field == "id"
    assert parse(payload, DEFAULTS, make_id=lambda: "made").id == "made"
    assert parse({**payload, "job_id": "given"}, DEFAULTS, make_id=lambda: "made").id == "given"
    assert refusal({**payload, "id": "../x"}).field == "id"


def test_the_first_spelling_of_id_type_and_user_wins(image: Any) -> None:
    """Callers send several names of a field at once, and their values may differ."""
    job = image(job_id="j2", job_type="video_fast", metadata={"user_id": "u2"})
    assert (job.id, job.type, job.user_id) == ("j1", "sdxl_image_fast", "u1")
    assert parse({"job_id": "j", "job_type": "chat", "prompt": "x"}, DEFAULTS).user_id is None
    assert image(user_id=None, metadata={"user_id": "u2"}).user_id == "u2"


@pytest.mark.parametrize("value", ["sdxl", "SDXL_IMAGE_FAST", 7, ["chat"], {}, "\ud800"])
def test_an_unknown_type_is_refused(body: Any, refusal: Any, value: object) -> None:
    """It has no queue."""
    assert refusal(body(type=value)).field == "type"
    assert refusal({"id": "x", "job_type": value}).field == "job_type"


@pytest.mark.parametrize("value", [None, "", "   ", "\n\t", 7, ["x"], "x" * 10_001, "a\0b", "a\udcffb"])
def test_an_unusable_prompt_is_an_invalid_prompt(body: Any, refusal: Any, value: object) -> None:
    """The code tells callers that the prompt is wrong, not a parameter."""
    for kind in ("sdxl_image_fast", "video_fast", "chat_conversation"):
        error = refusal(body(kind, prompt=value))
        assert isinstance(error, InvalidPrompt)
        assert error.field == "prompt"


def test_a_prompt_is_kept_as_written(image: Any) -> None:
    """Not even white space is added or removed."""
    text = "  ein Reiher 🪶 (soft light:1.2)\n" + "x" * 9000
    assert image(prompt=text).prompt == text


def test_negative_prompts_are_read_where_each_family_sends_them(image: Any, video: Any) -> None:
    """The live caller sends SDXL's negative prompt at top level with Wan jobs too, which must ignore it."""
    fields = {
        "negative_prompt": "top",
        "config": {"negative_prompt": "config"},
        "metadata": {"negative_prompt": "metadata"},
    }
    assert image(**fields).negative_prompt == "top"
    assert image(metadata={"negative_prompt": "metadata"}).negative_prompt == "metadata"
    assert video(**fields).negative_prompt == "config"
    assert video(negative_prompt="top").negative_prompt is None


def test_fields_for_the_callback_are_carried(image: Any) -> None:
    """Receivers match callbacks to their records with these; values of any type are kept."""
    job = image(
        video_id="v", image_id=3, character_id=None, created_at="now", metadata={"model_variant": "m"}
    )
    assert job.carried == {"video_id": "v", "image_id": 3, "created_at": "now", "model_variant": "m"}
    assert image(model_variant="top", metadata={"model_variant": "m"}).carried == {"model_variant": "top"}


def test_flags_are_read_as_booleans_and_echoed(image: Any) -> None:
    """The string "false" must not be echoed as true."""
    job = image(metadata={"unrestricted_mode": "false", "nsfw_optimization": True, "contentType": "sfw"})
    assert job.flags == {"unrestricted_mode": False, "nsfw_optimization": True, "content_type": "sfw"}
    assert job.callback_metadata()["unrestricted_mode"] is False
    assert job.callback_metadata()["nsfw_optimization"] is True


@pytest.mark.parametrize("bucket", ["workspace-temp", "sdxl_image_high", "video7b_fast_enhanced"])
def test_known_buckets_are_accepted(image: Any, bucket: str) -> None:
    """There is one per image or video type, and the default."""
    assert image(bucket=bucket).bucket == bucket


@pytest.mark.parametrize("bucket", ["user-library", "chat_enhance", "../x", 3, []])
def test_other_buckets_are_rejected(body: Any, refusal: Any, bucket: object) -> None:
    """Some buckets may only be read."""
    assert refusal(body(bucket=bucket)).field == "bucket"


@pytest.mark.parametrize("operation", ["status", "flush_caches", "queue-depths"])
def test_an_admin_job_needs_no_prompt_and_no_user(refusal: Any, operation: str) -> None:
    """It stores nothing that a user owns."""
    job = parse({"id": "a", "type": "admin_utilities", "operation": operation}, DEFAULTS)
    assert isinstance(job, AdminJob)
    assert job.operation == operation
    assert refusal({"id": "a", "type": "admin_utilities", "operation": "../x"}).field == "operation"


def test_parsing_does_not_change_the_payload(body: Any) -> None:
    """The caller may use its object again."""
    payload = body(config={"steps": "20"}, metadata={"x": {"y": 1}})
    before = json.dumps(payload)
    job = parse(payload, DEFAULTS)
    job.extras["metadata"]["x"]["y"] = 2
    assert json.dumps(payload) == before
