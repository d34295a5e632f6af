"""Arbitrary payloads become jobs or errors of the caller, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from ourvidz.errors import CallerError
from ourvidz.jobs import dialects, generation, videos
from ourvidz.jobs.catalog import ALIASES, CATALOG
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import BaseJob, dump_job, load_job
from tests.properties import examples

DEFAULTS = Defaults(callback_hosts=frozenset({"hooks.example.com"}), draw_seed=lambda: 7)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.characters()
    | st.sampled_from(
        [
            "",
            "25",
            "1024x1024",
            "480*832",
            "true",
            "single",
            "both",
            "style",
            "dpm++",
            "user-library/u/a.png",
            "user-library/x/a.png",
            "https://h/a.png",
            "https://hooks.example.com/",
            "file:///x",
            "workspace-temp",
            "NaN",
            "qwen_base",
            "\ud800",
            "a\0",
            "http://[",
            1,
            3,
            6,
            64,
            512,
            0.5,
        ]
    )
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

CONFIG = [
    "steps", "num_inference_steps", "guidance_scale", "num_images", "width", "height", "resolution",
    "size", "seed", "frames", "fps", "sample_solver", "sample_shift", "image", "first_frame",
    "last_frame", "reference_mode", "enhance_prompt", "system_prompt", "expected_time",
    "negative_prompt", "denoise_strength", "temperature",
]  # fmt: skip
METADATA = [
    "reference_image_url", "start_reference_url", "end_reference_url", "reference_type",
    "denoise_strength", "reference_strength", "exact_copy_mode", "user_id", "seed", "negative_prompt",
    "model_variant", "compel_weights",
]  # fmt: skip
TOP = [
    "bucket", "callback_url", "negative_prompt", "compel_enabled", "compel_weights", "messages",
    "model", "max_tokens", "temperature", "top_p", "stream", "video_id", "created_at",
    "denoise_strength", "unrestricted_mode", "operation",
]  # fmt: skip


def some(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=5), JSON, max_size=4)


@st.composite
def submissions(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly valid payloads with a few arbitrary values at known paths."""
    payload: dict[str, Any] = {
        "id": "j",
        "type": draw(st.sampled_from([*CATALOG, *ALIASES])),
        "prompt": draw(st.sampled_from(["a heron", "", " "])),
        "user_id": "u",
        **draw(some(TOP)),
        "config": draw(some(CONFIG)),
        "metadata": draw(some(METADATA)),
    }
    if draw(st.integers(0, 9)) == 0:
        payload[draw(st.sampled_from(["id", "type", "prompt", "user_id", "config", "metadata"]))] = draw(JSON)
    return payload


def outcome(payload: object) -> BaseJob | tuple[str, str | None, str]:
    try:
        return parse(payload, DEFAULTS)
    except CallerError as error:
        json.dumps([error.field, error.rule, error.value], allow_nan=False).encode()
        error.message.encode()
        return error.code, error.field, error.message


@given(JSON)
def test_any_json_value_is_a_job_or_a_callers_error(payload: object) -> None:
    """No other exception is raised."""
    outcome(payload)


@examples(400, suppress_health_check=[HealthCheck.too_slow])
@given(submissions())
def test_any_submission_is_a_storable_job_or_a_callers_error(payload: dict[str, Any]) -> None:
    """Equal payloads give equal results, and a job and its fingerprint survive serialisation."""
    first, second = outcome(payload), outcome(payload)
    if isinstance(first, BaseJob):
        assert isinstance(second, BaseJob)
        assert dump_job(first) == dump_job(second)  # type: ignore[arg-type]
        again = load_job(dump_job(first))  # type: ignore[arg-type]
        assert dump_job(again) == dump_job(first)  # type: ignore[arg-type]
        assert again.fingerprint() == first.fingerprint()
    else:
        assert first == second


@examples(200)
@given(submissions(), st.dictionaries(st.text(min_size=1, max_size=6).map("x_{}".format), JSON, max_size=3))
def test_unknown_fields_change_nothing_but_extras(payload: dict[str, Any], more: dict[str, Any]) -> None:
    """Newer callers may send fields that this version does not know."""
    without, with_more = outcome(payload), outcome(payload | more)
    if isinstance(without, BaseJob):
        assert isinstance(with_more, BaseJob)
        assert with_more.fingerprint() == without.fingerprint()
        assert with_more.model_copy(update={"extras": without.extras}) == without
    else:
        assert with_more == without


def test_every_kind_of_the_catalog_has_a_parser() -> None:
    """A row without a parser would fail only when a caller uses it."""
    assert {row.kind for row in CATALOG.values()} == set(dialects.PARSERS)
    assert set(videos.REQUIRED_REFERENCES) == set(videos.MODES)
    assert set(generation.REFERENCE_TYPES) == {"style", "composition", "character"}
