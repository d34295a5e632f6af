"""Values are read by path, and an invalid value is an error that names its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ourvidz.errors import InvalidParameters, InvalidPrompt
from ourvidz.jobs.job import dump_job, load_job


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"steps": "25"}, "steps", 25),
        ({"steps": 25.0}, "steps", 25),
        ({"steps": "25.0"}, "steps", 25),
        ({"steps": None, "num_inference_steps": 30}, "steps", 30),
        ({"steps": "", "sample_steps": 31}, "steps", 31),
        ({"num_inference_steps": 30, "sample_steps": 31}, "steps", 30),
        ({"guidance_scale": "7.25"}, "guidance_scale", 7.25),
        ({"guidance_scale": 0}, "guidance_scale", 0.0),
        ({"sample_guide_scale": "1e1"}, "guidance_scale", 10.0),
        ({"batch_size": "3"}, "num_images", 3),
        ({"seed": 2147483647}, "seed", 2147483647),
        ({"seed": 0}, "seed", 0),
        ({"width": 64, "height": 2048}, "height", 2048),
        ({"size": "768*512"}, "width", 768),
        ({"resolution": "512x768", "size": "64*64"}, "width", 512),
        ({"expected_time": "12.5"}, "expected_time", 12.5),
        ({"negative_prompt": "fog"}, "negative_prompt", "fog"),
    ],
)
def test_a_value_is_read_from_the_first_path_that_is_present(
    image: Any, config: dict[str, Any], field: str, value: object
) -> None:
    """Callers write the same value at different paths; null, missing and "" count as absent."""
    assert getattr(image(config=config), field) == value


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"steps": True}, "config.steps"),
        ({"steps": 25.5}, "config.steps"),
        ({"steps": "25.5"}, "config.steps"),
        ({"steps": 101}, "config.steps"),
        ({"steps": "many", "num_inference_steps": 20}, "config.steps"),
        ({"steps": [20]}, "config.steps"),
        ({"steps": 10**400}, "config.steps"),
        ({"steps": "1_0"}, "config.steps"),
        ({"steps": "٣"}, "config.steps"),
        ({"sample_guide_scale": float("nan")}, "config.sample_guide_scale"),
        ({"guidance_scale": float("inf")}, "config.guidance_scale"),
        ({"guidance_scale": "inf"}, "config.guidance_scale"),
        ({"guidance_scale": "1e999"}, "config.guidance_scale"),
        ({"guidance_scale": 20.01}, "config.guidance_scale"),
        ({"guidance_scale": {}}, "config.guidance_scale"),
        ({"batch_size": 2}, "config.batch_size"),
        ({"num_images": 3.5}, "config.num_images"),
        ({"seed": 2147483648}, "config.seed"),
        ({"width": 512}, "config.height"),
        ({"height": 512}, "config.width"),
        ({"width": 513, "height": 512}, "config.width"),
        ({"width": 512, "height": 2056}, "config.height"),
        ({"resolution": "1024"}, "config.resolution"),
        ({"resolution": 1024}, "config.resolution"),
        ({"size": "56*64"}, "config.size"),
        ({"negative_prompt": ["fog"]}, "config.negative_prompt"),
        ({"negative_prompt": "f" * 10_001}, "config.negative_prompt"),
        ({"negative_prompt": "\ud800"}, "config.negative_prompt"),
    ],
)
def test_an_invalid_value_is_an_error_at_its_path(
    body: Any,
    refusal: Any,
    config: dict[str, Any],
    field: str,
) -> None:
    """Nothing is rounded, clamped or skipped silently."""
    error = refusal(body(config=config))
    assert isinstance(error, InvalidParameters)
    assert error.field == field
    assert field in error.message
    json.dumps([error.message, error.rule, error.value], allow_nan=False).encode()


def test_an_error_names_field_rule_and_value_in_one_sentence(body: Any, refusal: Any) -> None:
    """The message is all that many callers log."""
    error = refusal(body(config={"resolution": "1023x1024"}))
    assert error.message == (
        "config.resolution must be WIDTHxHEIGHT, each a multiple of 8 from 64 to 2048, not '1023x1024'."
    )
    assert error.value == "1023x1024"


def test_an_error_does_not_quote_a_prompt(body: Any, refusal: Any) -> None:
    """Errors are logged, and prompts must not be."""
    error = refusal(body(prompt="secret words " * 1000))
    assert isinstance(error, InvalidPrompt)
    assert "secret" not in f"{error.message} {error.value} {error.rule}"


@pytest.mark.parametrize("payload", [None, [], "x", 3, True, [{"id": "x"}]])
def test_a_payload_that_is_no_object_is_an_error_without_a_field(refusal: Any, payload: object) -> None:
    """There is no path to name."""
    assert refusal(payload).field is None


@pytest.mark.parametrize("name", ["config", "metadata"])
@pytest.mark.parametrize("value", [[], "x", 0, True])
def test_a_container_that_is_no_object_is_an_error(body: Any, refusal: Any, name: str, value: object) -> None:
    """Treating it as empty would drop what the caller sent."""
    assert refusal(body(**{name: value})).field == name


@pytest.mark.parametrize("name", ["config", "metadata"])
@pytest.mark.parametrize("value", [None, "", {}])
def test_an_absent_container_is_no_error(image: Any, name: str, value: object) -> None:
    """For containers too, null, missing and "" count as absent."""
    assert image(**{name: value}).steps == 15


@pytest.mark.parametrize(
    "value", ["", None, "../x", ".x", "-x", "a b", "a/b", "é", "x" * 129, 7, True, ["x"], "a\n", "a\0"]
)
@pytest.mark.parametrize("field", ["id", "user_id"])
def test_ids_with_other_characters_are_rejected(body: Any, refusal: Any, field: str, value: object) -> None:
    """Ids become parts of storage paths and Redis keys."""
    assert refusal(body(**{field: value})).field == field


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("false", False)]
)
def test_booleans_may_be_strings(image: Any, video: Any, value: object, expected: bool) -> None:
    """Callers that build payloads from HTML forms send strings."""
    assert image(compel_enabled=value).compel_enabled is expected
    assert image(metadata={"compel_enabled": value}).compel_enabled is expected
    assert video(config={"enhance_prompt": value}).enhance_prompt is expected


@pytest.mark.parametrize("value", [1, 0, "yes", [], {}])
def test_other_values_are_no_booleans(body: Any, refusal: Any, value: object) -> None:
    """1 is not true in JSON, and a wrong guess changes the image."""
    assert refusal(body(compel_enabled=value)).field == "compel_enabled"
    assert refusal(body(metadata={"exact_copy_mode": value})).field == "metadata.exact_copy_mode"


def test_unknown_fields_are_kept_with_their_nesting(image: Any) -> None:
    """They are no error; operators can look at them. Fields that are read are not among them."""
    job = image(
        quality="high",
        config={"steps": 20, "pipeline": "txt2img", "note": None},
        metadata={"aspect_ratio": "1:1", "deep": [{"a": 1}]},
    )
    assert job.extras == {
        "quality": "high",
        "config": {"pipeline": "txt2img", "note": None},
        "metadata": {"aspect_ratio": "1:1", "deep": [{"a": 1}]},
    }


def nest(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        nest(50_000),
        {"k": nest(300)},
        "\ud800",
        {"\udfff": 1},
        "a\0b",
        float("nan"),
        10**5000,
        2**200,
        ["x" * 10] * 1_000,
        b"bytes",
        (1, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unknown_fields_of_any_type_can_be_stored(image: Any, value: object) -> None:
    """They must not fail later, when the job is serialised."""
    job = image(whatever=value, metadata={"other": value}, video_id=value)
    assert dump_job(load_job(dump_job(job))) == dump_job(job)
    assert "whatever" in job.extras
    job.fingerprint()


@pytest.mark.parametrize(
    "field",
    ["id", "type", "prompt", "user_id", "bucket", "callback_url", "negative_prompt", "compel_enabled"],
)
def test_deep_nesting_in_a_known_field_is_an_ordinary_error(body: Any, refusal: Any, field: str) -> None:
    """Building the error message must not recurse into the value."""
    assert refusal(body(**{field: nest(50_000)})).field == field


@pytest.mark.parametrize(
    "fields",
    [
        {"config": {"expected_time": 0}},
        {"metadata": {"expected_generation_time": "soon"}},
        {"unrestricted_mode": 1},
        {"metadata": {"nsfw_optimization": "enabled", "sfw_mode": {}}},
    ],
)
def test_an_optional_field_of_the_wrong_type_is_no_error(image: Any, fields: dict[str, Any]) -> None:
    """It counts as absent and is kept with the unknown fields."""
    job = image(**fields)
    assert job.expected_time == 30
    assert job.flags == {}
    assert job.extras == fields
